//! `ringspan host plan`, without a daemon and by one.

use std::fs;

use crate::Bench;

#[test]
fn a_plan_names_what_is_wrong_with_file_and_line_and_has_exit_code_1() {
    let bench = Bench::start("");
    let (file, local) = (bench.path("host.conf"), bench.path("local.conf"));
    // Not the machine's own additions.
    let text = format!("networks:\n- lo/br0/127.0.0.1\nlocal_config_file: {}\nsriov_nics:\n- lo\n", local.display());
    fs::write(&file, text).unwrap();
    let (code, said) = bench.fails("host plan {dir}/host.conf");
    assert_eq!((code, said.contains("1 card is refused, and the files have 0 errors")), (1, true), "{said}");
    let shown = String::from_utf8(bench.run("host plan {dir}/host.conf").stdout).unwrap();
    let refusal = format!("lo ({}:5) refused: lo is no physical function of a card on the PCI bus", file.display());
    assert!(shown.contains(&refusal), "{shown}");
    let params = format!("{{\"file\":\"{}\"}}", file.display());
    let plan = bench.json(&format!("call host.plan {params}"));
    assert_eq!(
        (plan["items"][0]["standing"].as_str(), plan["problems"].as_array().map(Vec::len)),
        (Some("refused"), Some(0))
    );
    let (code, said) = bench.fails("host apply {dir}/host.conf --dry-run");
    assert!(code == 1 && said.contains("lo is no physical function"), "{said}");
    fs::write(&file, "networks:\n- lo/br0\nsriov_nics: 7\n").unwrap();
    let (code, said) = bench.fails("host plan {dir}/host.conf");
    assert!(code == 1 && said.contains("host.conf:3: sriov_nics is no list: write each entry"), "{said}");
    let (_, said) = bench.fails("call host.plan {\"file\":\"host.conf\"}");
    assert!(said.contains("give the whole path"), "{said}");
}

//! Guests that run: vhost-user needs their memory shared.

use super::Found;
use crate::host::doctor::host::Host;

pub(super) fn shared(host: &Host) -> Vec<Found> {
    let processes = match host.names("/proc") {
        Ok(names) => names,
        Err(why) => return vec![Found::unseen("/proc", &why)],
    };
    let (mut shared, mut found) = (0, Vec::new());
    for process in processes.iter().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())) {
        let name = host.text(&format!("/proc/{process}/comm")).unwrap_or_default();
        if !(name.starts_with("qemu-system") || name == "qemu-kvm" || name.starts_with("CPU ")) {
            continue;
        }
        let Ok(line) = host.bytes(&format!("/proc/{process}/cmdline")) else { continue };
        let words: Vec<String> =
            line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        if words.iter().any(|word| is_shared(word)) {
            shared += 1;
            continue;
        }
        let guest = words.iter().skip_while(|word| *word != "-name").nth(1);
        let guest = guest.map(|name| name.split(',').next().unwrap_or(name).trim_start_matches("guest=").to_owned());
        found.push(
            Found::warn("its memory is not shared: it cannot have a vhost-user NIC while it runs")
                .about(format!("{} (process {process})", guest.unwrap_or_else(|| "guest".into())))
                .evidence([format!("/proc/{process}/cmdline: no memory backend with share=on")])
                .remedy(["# start it with -object memory-backend-memfd,id=mem,size=SIZE,share=on -machine memory-backend=mem, or with hugepages"]),
        );
    }
    if found.is_empty() {
        found.push(match shared {
            0 => Found::unknown("no QEMU runs: nothing to look at"),
            all => Found::pass(format!("the memory of all {all} running guests is shared")),
        });
    }
    found
}

/// `-object memory-backend-...,share=on`, also as JSON, which libvirt writes.
fn is_shared(word: &str) -> bool {
    word.contains("memory-backend")
        && (["share=on", "share=yes", "share=true"].iter().any(|text| word.contains(text))
            || word.contains("\"share\":true"))
}

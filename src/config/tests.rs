//! What a file must be, and what is said of one that is not.

use std::path::Path;

use super::*;

fn read(text: &str) -> Result<Config, String> {
    let host = HostCores { online: vec![0, 1, 2, 3] };
    parse(Path::new("r.toml"), text, &host).map_err(|error| error.to_string())
}

const AS_DOCUMENTED: &str = r#"
[control]
socket = "/run/ringspan/control.sock"
state_dir = "/var/lib/ringspan"   # desired state; ports added at run time live here
[dataplane]
cores = [0]            # workers of the lane "main": one per core
memory_mib = 256       # of the lane "main"
huge_pages = "auto"    # auto | require | off
# [[lane]] name, cores, memory_mib: further lanes; a port goes where it names (lane = "...") or where there is room
[[port]]
name = "vm1"
socket = "/run/ringspan/vm1.sock"
role = "server"        # server: ringspan listens; client: it connects, and retries
device = "vdev:net_null0,size=64,no-rx=1"
queues = 1
"#;

#[test]
fn the_documented_file_works_as_written() {
    let config = read(AS_DOCUMENTED).unwrap();
    assert_eq!(config.control.run_dir, Path::new("/run/ringspan"));
    assert_eq!((config.lanes.len(), config.lanes[0].name.as_str(), config.lanes[0].memory_mib), (1, "main", 256));
    assert_eq!((config.ports[0].line, config.ports[0].request.name.as_str()), (10, "vm1"));
}

#[test]
fn an_empty_file_is_a_daemon_with_the_lane_main() {
    let config = read("").unwrap();
    assert_eq!(config.control.socket, Path::new(DEFAULT_SOCKET));
    assert_eq!(config.lanes[0].cores, [0]);
    // Packets would pass by the host's IPsec and firewall.
    assert!(!config.ovs.kernel_tunnels);
    assert!(read("[ovs]\nkernel_tunnels = true").unwrap().ovs.kernel_tunnels);
}

#[test]
fn the_example_has_every_key_and_its_comments_are_right_too() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/ringspan.toml");
    let text = std::fs::read_to_string(file).unwrap();
    read(&text).unwrap();
    // `#key = value` and `#[[lane]]` are keys that are commented out; `# text` is a comment.
    let uncommented: Vec<&str> = text
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') && !rest.is_empty() => rest,
            _ => line,
        })
        .collect();
    let uncommented = uncommented.join("\n");
    let config = read(&uncommented).unwrap();
    assert_eq!((config.lanes.len(), config.control.group), (2, Some(0)));
    let port = serde_json::to_value(&config.ports[0].request).unwrap();
    let schema = schemars::schema_for!(PortRequest);
    for key in schema.get("properties").unwrap().as_object().unwrap().keys() {
        assert!(port.get(key).is_some_and(|value| !value.is_null()), "[[port]] {key} is not in the example");
    }
    for table in ["control", "log", "dataplane", "lane", "ovs"] {
        let error = read(&format!("[{table}]\nno-such-key = 1").replace("[lane]", "[[lane]]")).unwrap_err();
        let expected = error.split('`').skip(3).step_by(2);
        for key in expected {
            let has = uncommented.lines().any(|line| line.trim_start().starts_with(&format!("{key} =")));
            assert!(has, "{table}.{key} is not in the example");
        }
        assert!(error.starts_with(&format!("r.toml:2: {table}: unknown field `no-such-key`, expected")), "{error}");
    }
}

fn with(lines: &str) -> String {
    format!("{AS_DOCUMENTED}{lines}\n")
}

#[test]
fn what_is_wrong_is_named_with_its_line_and_the_remedy() {
    let port = |more: &str| with(&format!("[[port]]\nname = \"vm2\"\n{more}"));
    let device = "device = \"vdev:net_null1\"";
    for (text, line, says) in [
        ("[control]\nsockets = \"/x\"".to_owned(), 2, "unknown field `sockets`"),
        (
            "[dataplane]\n\ncores = [0, 9]".into(),
            3,
            "core 9 does not exist or is offline: this machine has [0, 1, 2, 3]",
        ),
        (format!("[control]\nrun_dir = \"/{}\"", "r".repeat(95)), 2, "give control.run_dir a shorter path"),
        (
            ["a", "b"]
                .map(|n| {
                    format!(
                        "[[port]]\nname = \"{n}\"\nsocket = \"/run/{n}\"\ndevice = \"vdev:net_tap_{n},iface=up0\"\n"
                    )
                })
                .concat(),
            5,
            "the port a has the interface up0 already",
        ),
        ("[dataplane]\ncores = []".into(), 2, "at least one"),
        ("[dataplane]\ncores = [1, 1]".into(), 2, "listed twice"),
        ("[dataplane]\nmemory_mib = 4".into(), 2, "at least 16"),
        ("[dataplane]\nrebalance_ms = 5".into(), 2, "choose 10 to 60000, or 0"),
        (
            "[dataplane]\nhuge_pages = \"maybe\"".into(),
            2,
            "dataplane.huge_pages is \"maybe\": give one of `auto`, `require`, `off`",
        ),
        ("[dataplane]\nhuge_pages = 1".into(), 2, "dataplane.huge_pages is 1: give one of `auto`, `require`, `off`"),
        ("[log]\nlevel = [\n3,\n]".into(), 2, "log.level is [ 3, ]: give one of `error`,"),
        ("[dataplane]\ncores = 1".into(), 2, "dataplane.cores is 1: give a list in brackets, such as [0, 1]"),
        ("[dataplane]\ncores = [-1]".into(), 2, "dataplane.cores is -1: give a whole number from 0 to 65535"),
        ("[dataplane]\nbusy_poll = \"on\"".into(), 2, "dataplane.busy_poll is \"on\": give true or false"),
        ("[control]\nsocket = 1".into(), 2, "control.socket is 1: give a text in quotes"),
        ("dataplane = 3".into(), 1, "dataplane is 3: give a table"),
        ("[[lane]]\nname = \"a/b\"\ncores = [0]".into(), 2, "lane.name: "),
        ("[control]\nsocket = \"run/x\"".into(), 2, "begin it with /"),
        ("[control]\ngroup = \"no-such-group\"".into(), 2, "create it"),
        ("[control]\nsocket_mode = \"abc\"".into(), 2, "0660"),
        ("[log]\nlevel = \"loud\"".into(), 2, "`error`, `warn`"),
        ("[[lane]]\nname = \"main\"\ncores = [0]".into(), 1, "described by [dataplane]"),
        ("[[lane]]\nname = \"b\"\ncores = [0]\n[[lane]]\nname = \"b\"\ncores = [0]".into(), 4, "two lanes b"),
        ("[[lane]]\nname = \"b\"".into(), 1, "missing field `cores`"),
        (with("[[port]]\nname = \"vm1\"\nsocket = \"/run/b\"\ndevice = \"vdev:net_null1\""), 16, "two ports vm1"),
        (port(&format!("socket = \"/run/ringspan/vm1.sock\"\n{device}")), 16, "the port vm1 has the socket"),
        (
            port("socket = \"/run/b\"\ndevice = \"vdev:net_null0,size=9\""),
            16,
            "the port vm1 has the device vdev:net_null0",
        ),
        (
            port(&format!("socket = \"/run/b\"\n{device}\nlane = \"c\"")),
            16,
            "no lane c: add a [[lane]], or name one of main",
        ),
        (port(&format!("socket = \"/run/b\"\n{device}\nqueues = 33")), 16, "1 to 32"),
        (port(&format!("socket = \"/run/b\"\n{device}\ncolour = 1")), 20, "unknown field `colour`"),
        (port("socket = \"/run/b\"\ndevice = \"null0\""), 19, "is not a device"),
        (port(&format!("socket = \"/run/ringspan/control.sock\"\n{device}")), 16, "is the control socket"),
        (
            port(&format!("socket = \"/run/b\"\n{device}\nqueues = \"two\"")),
            20,
            "port.queues is \"two\": give a whole number from 0 to 65535",
        ),
        ("a = = 1".into(), 1, ""),
        (AS_DOCUMENTED.replace("memory_mib = 256", "memory_mib = 16"), 7, "its ports need at least 17"),
    ] {
        let error = read(&text).expect_err(&text);
        assert!(error.starts_with(&format!("r.toml:{line}: ")), "line {line} in {error:?} of\n{text}");
        assert!(error.contains(says), "{says:?} in {error:?}");
        assert!(!error.contains('\n'), "{error:?}");
    }
}

#[test]
fn one_pci_device_has_one_port_whatever_the_lane_and_a_virtual_one_may_be_in_each() {
    let lanes = "[[lane]]\nname = \"b\"\ncores = [1]\n";
    let ports = |a: &str, b: &str| {
        let port = |name: &str, lane: &str, device: &str| {
            format!("[[port]]\nname = \"{name}\"\nlane = \"{lane}\"\nsocket = \"/run/{name}\"\ndevice = \"{device}\"\n")
        };
        read(&format!("{lanes}{}{}", port("x", "main", a), port("y", "b", b)))
    };
    ports("vdev:net_null0", "vdev:net_null0").unwrap();
    ports("pci:0a:00.0,representor=vf1", "pci:0a:00.0,representor=vf2").unwrap();
    assert!(ports("patch:x/a", "patch:x/a").unwrap_err().contains("has the device patch:x/a already"));
    assert!(ports("patch:x/a", "patch:x/b").unwrap_err().contains("give both the same"));
    assert!(ports("pci:0a:00.0", "pci:0000:0A:00.0,x=1").unwrap_err().contains("pci:0000:0a:00.0"));
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = load(Path::new("/no/such/file"), &HostCores { online: vec![0] }).unwrap_err().to_string();
    assert!(error.starts_with("/no/such/file: "), "{error}");
}

#[test]
fn the_kernels_list_of_cores_is_read() {
    assert_eq!(parse_core_list("0-3,8"), [0, 1, 2, 3, 8]);
    assert_eq!(parse_core_list("0"), [0]);
    assert_eq!(parse_core_list(""), [0u16; 0]);
}

use super::*;

#[test]
fn addresses_are_read_and_said() {
    for good in ["unix:/run/vm.sock", "unix:relative", "tcp:192.0.2.7:4444", "tcp:host:0", "tcp:[::1]:80"] {
        assert_eq!(good.parse::<Address>().unwrap().to_string(), good);
    }
    for bad in ["", "unix:", "tcp:host", "tcp::80", "tcp:host:70000", "udp:host:1", "/run/vm.sock"] {
        assert!(bad.parse::<Address>().is_err(), "{bad}");
    }
}

#[test]
fn nobody_at_an_address_is_told_with_what_would_mend_it() {
    let folder = tempfile::tempdir().unwrap();
    let address = Address::Unix(folder.path().join("none"));
    let text = Link::connect(&address).unwrap_err().to_string();
    assert!(text.contains("can't connect to unix:") && text.contains("try: `skep receive` there first"), "{text}");
}

use std::path::Path;

use skep_config::{ArchKind, Config};

use super::*;

#[test]
fn another_image_is_named_by_its_disk() {
    let one: Instead = "disk0=a=b.img".parse().unwrap();
    assert_eq!((one.id.as_str(), one.new.as_str()), ("disk0", "a=b.img"));
    for wrong in ["", "disk0", "=a", "disk0="] {
        assert!(wrong.parse::<Instead>().unwrap_err().contains("ID=NEW"), "{wrong}");
    }
}

#[test]
fn only_a_disk_that_is_there_is_replaced() {
    let mut config = Config::new(ArchKind::Aarch64);
    let other = ["data=/copy.img".parse().unwrap()];
    assert!(replace(&mut config, &other).unwrap_err().to_string().ends_with("without that: there is none"));
    config.disk = vec!["/data.img,format=raw,id=data".parse().unwrap()];
    assert_eq!(replace(&mut config, &other).unwrap(), ["data"]);
    assert_eq!(config.disk[0].source.path_mut(), Path::new("/copy.img"));
    let wrong = replace(&mut config, &["date=/x".parse().unwrap()]).unwrap_err().to_string();
    assert_eq!(wrong, "the machine has no disk `date`\n  try: one of data");
}

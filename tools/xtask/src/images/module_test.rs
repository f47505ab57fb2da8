use super::{SIGNATURE_MAGIC, unsigned};

#[test]
fn a_signature_is_cut_off() {
    let mut module = b"module".to_vec();
    assert_eq!(unsigned(&module).unwrap(), b"module");
    module.extend_from_slice(b"signature");
    module.extend_from_slice(&[0; 8]);
    module.extend_from_slice(&9_u32.to_be_bytes());
    module.extend_from_slice(SIGNATURE_MAGIC);
    assert_eq!(unsigned(&module).unwrap(), b"module");
}

#[test]
fn a_signature_longer_than_the_file_is_an_error() {
    let mut module = vec![0; 8];
    module.extend_from_slice(&1000_u32.to_be_bytes());
    module.extend_from_slice(SIGNATURE_MAGIC);
    assert!(unsigned(&module).is_err());
    assert!(unsigned(SIGNATURE_MAGIC).is_err());
}

use super::*;

#[test]
fn an_extended_destination_goes_to_the_upper_half() {
    // Destination 0x4523: bits 7:0 in address bits 19:12, bits 14:8 in 11:5; redirection hint and logical mode stay.
    let message = MsiMessage { address: 0xfee0_0000 | 0x23 << 12 | 0x45 << 5 | 0xc, data: 0x8041 };
    let msi = translate(message, None).unwrap();
    assert_eq!(msi, KvmMsi { address: 0x4500 << 32 | 0xfee2_300c, data: 0x8041, device: None });
}

#[test]
fn what_is_no_local_apic_takes_no_message() {
    for address in [0, 0xfed0_0000, 0x1_fee0_0000, 0xfef0_0000] {
        let refused = translate(MsiMessage { address, data: 0x41 }, None);
        assert!(matches!(refused, Err(IrqError::NoMsiTarget { address: a, data: 0x41 }) if a == address));
    }
}

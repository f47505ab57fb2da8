use super::*;

fn read(text: &str) -> Result<Memory, String> {
    text.parse().map_err(|problem: crate::Problem| problem.to_string())
}

#[test]
fn reads_sizes_and_options() {
    assert_eq!(read("1G"), Ok(Memory { size: Size::gib(1), ..Memory::default() }));
    assert_eq!(
        read("4G,hugepages=2M,prefault,shared"),
        Ok(Memory { size: Size::gib(4), hugepages: Some(Size::mib(2)), prefault: true, shared: true })
    );
    assert_eq!(read("prefault=true,size=1G,shared=false"), read("1G,prefault"));
    // Far more than any host has: that is for the host to say.
    assert_eq!(read("8E").unwrap().size.bytes(), 1 << 63);
}

#[test]
fn refuses_what_no_host_could_do() {
    let refuse = |text: &str| read(text).unwrap_err();
    assert_eq!(refuse("0M"), "a guest needs memory");
    assert_eq!(
        refuse("1G,hugepages=3M"),
        "huge pages of 3M do not exist: `ls /sys/kernel/mm/hugepages` names the host's"
    );
    assert_eq!(
        refuse("1G,hugepages=4K"),
        "huge pages of 4K do not exist: `ls /sys/kernel/mm/hugepages` names the host's"
    );
    assert_eq!(refuse("1026M,hugepages=1G"), "memory of 1026M is not a whole number of huge pages of 1G");
    assert_eq!(refuse("1G,hugepage=2M"), "unknown key `hugepage`: did you mean `hugepages`?");
    assert_eq!(refuse("1G,prefault=yes"), "`prefault`: found `yes`, expected true or false");
    assert_eq!(refuse("512"), "`size`: size `512` has no unit: write `512M` for mebibytes, or `512B` for bytes");
    assert_eq!(refuse("1G,hugepages"), "`hugepages`: found `true`, expected a size such as \"512M\" or \"4G\"");
}

use super::*;

#[test]
fn the_answer_is_judged() {
    assert_eq!(judge(Some(libc::EFAULT), None).verdict, Verdict::Ok);
    assert_eq!(judge(Some(libc::ENOSYS), None).text, "the kernel has none");
    assert_eq!(judge(Some(libc::EPERM), Some("2")).mend.unwrap(), "sudo sysctl kernel.io_uring_disabled=0");
    assert_eq!(judge(Some(libc::EPERM), Some("0")).verdict, Verdict::Missing);
}

#[test]
fn the_kernel_makes_no_ring() {
    assert!(answer().raw_os_error().is_some_and(|error| error > 0));
}

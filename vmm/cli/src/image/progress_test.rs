use super::*;

#[test]
fn a_terminal_has_a_bar_and_others_a_line_for_each_tenth() {
    let said = |terminal| {
        let mut progress = Progress { terminal, shown: None };
        (0..=1000).filter_map(|done| progress.text(done << 30, 1000 << 30, None)).collect::<Vec<_>>()
    };
    let lines = said(false);
    assert_eq!((lines.len(), lines[0].as_str()), (10, "skep: 10% of 1073741824000 bytes\n"));
    assert_eq!(lines[9], "skep: 100% of 1073741824000 bytes\n");
    let bars = said(true);
    assert_eq!((bars.len(), bars[0].as_str()), (101, &*format!("\r[{}]   0%", " ".repeat(40))));
    assert_eq!(bars[50], format!("\r[{}{}]  50%", "#".repeat(20), " ".repeat(20)));
    assert_eq!(bars[100], format!("\r[{}] 100%", "#".repeat(40)));
    let bar = Progress { terminal: true, shown: None }.text(1, 2, Some(40 << 20)).unwrap();
    assert!(bar.ends_with("]  50%     40 MiB/s"), "{bar}");
}

use super::*;

#[test]
fn the_median_is_in_the_middle() {
    assert_eq!(median([]), None);
    assert_eq!(median([3.0]), Some(3.0));
    assert_eq!(median([9.0, 1.0, 2.0]), Some(2.0));
    assert_eq!(median([4.0, 1.0, 2.0, 9.0]), Some(3.0));
}

#[test]
fn a_table_is_markdown() {
    let mut table = Table::new(["monitor", "ms"]);
    table.row(["skep".to_owned(), "3".to_owned()]);
    assert_eq!(table.to_string(), "| monitor |  ms |\n|---------|----:|\n| skep    |   3 |\n");
}

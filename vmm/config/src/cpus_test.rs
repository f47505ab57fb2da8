use proptest::prelude::*;

use super::*;

fn read(text: &str) -> Result<[u32; 5], String> {
    let cpus: Cpus = text.parse().map_err(|problem: crate::Problem| problem.to_string())?;
    Ok([cpus.count, cpus.max, cpus.sockets, cpus.cores, cpus.threads])
}

#[test]
fn what_is_missing_is_made_up() {
    assert_eq!(read("1"), Ok([1, 1, 1, 1, 1]));
    assert_eq!(read("4"), Ok([4, 4, 1, 4, 1]));
    assert_eq!(read("2,max=8"), Ok([2, 8, 1, 8, 1]));
    assert_eq!(read("8,threads=2"), Ok([8, 8, 1, 4, 2]));
    assert_eq!(read("8,cores=2"), Ok([8, 8, 4, 2, 1]));
    assert_eq!(read("8,sockets=2"), Ok([8, 8, 2, 4, 1]));
    assert_eq!(read("8,sockets=2,cores=2"), Ok([8, 8, 2, 2, 2]));
    assert_eq!(read("3,sockets=2,cores=2,threads=2"), Ok([3, 8, 2, 2, 2]));
    assert_eq!(read("count=6,max=6"), Ok([6, 6, 1, 6, 1]));
}

#[test]
fn no_count_is_too_large_here() {
    assert_eq!(read("4294967295"), Ok([u32::MAX, u32::MAX, 1, u32::MAX, 1]));
}

#[test]
fn refuses_what_does_not_add_up() {
    let refuse = |text: &str| read(text).unwrap_err();
    assert_eq!(refuse("0"), "`count` must be at least 1");
    assert_eq!(refuse("4,threads=0"), "`threads` must be at least 1");
    assert_eq!(refuse("8,max=4"), "8 CPUs are more than the most that there may be, 4: raise `max` or the topology");
    assert_eq!(refuse("7,threads=2"), "7 CPUs can't be laid out as threads=2: sockets * cores * threads must be 7");
    assert_eq!(
        refuse("1,max=8,sockets=1,cores=2,threads=2"),
        "8 CPUs can't be laid out as sockets=1, cores=2, threads=2: sockets * cores * threads must be 8"
    );
    assert_eq!(
        refuse("1,sockets=4294967295,cores=4294967295,threads=4294967295"),
        "a topology of 79228162458924105385300197375 CPUs is beyond 32 bits"
    );
    assert_eq!(
        refuse("1,max=2,cores=4294967295"),
        "2 CPUs can't be laid out as cores=4294967295: sockets * cores * threads must be 2"
    );
    assert_eq!(refuse("four"), "`count`: found `four`, expected a whole number up to 4294967295");
    assert_eq!(refuse("4294967296"), "`count`: found `4294967296`, expected a whole number up to 4294967295");
    assert_eq!(refuse("-1"), "`count`: found `-1`, expected a whole number up to 4294967295");
    assert_eq!(
        refuse("99999999999999999999999"),
        "`count`: found `99999999999999999999999`, expected a whole number up to 4294967295"
    );
    assert_eq!(refuse("4,thread=2"), "unknown key `thread`: did you mean `threads`?");
    assert_eq!(refuse("4,max=8,max=8"), "key `max` is given twice");
    assert_eq!(refuse("4,8"), "unknown key `8`: the keys here are count, max, sockets, cores, threads");
}

proptest! {
    #[test]
    fn what_passes_is_complete(count: u32, max: Option<u32>, sockets: Option<u32>, cores in 0_u32..70, threads in 0_u32..4) {
        let keys = Keys { count: Some(count), max, sockets, cores: Some(cores), threads: Some(threads) };
        if let Ok(cpus) = Cpus::from_keys(keys) {
            prop_assert!(cpus.count >= 1 && cpus.count <= cpus.max);
            let product = u128::from(cpus.sockets) * u128::from(cpus.cores) * u128::from(cpus.threads);
            prop_assert_eq!(product, u128::from(cpus.max));
        }
    }
}

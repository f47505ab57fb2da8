use std::sync::atomic::AtomicUsize;

use proptest::prelude::*;

use super::*;

#[derive(Default)]
struct Recorder(Mutex<Vec<(u32, bool)>>);

impl LineTarget for Recorder {
    fn set_level(&self, line: u32, asserted: bool) {
        self.0.lock().unwrap().push((line, asserted));
    }
}

fn table() -> (Arc<Recorder>, LineTable) {
    let recorder = Arc::new(Recorder::default());
    (recorder.clone(), LineTable::new(recorder, 4..=7))
}

#[test]
fn a_shared_line_is_high_while_any_handle_asserts_it() {
    let (recorder, table) = table();
    let a = table.line(5, Trigger::Level, Polarity::Low).unwrap();
    let b = table.line(5, Trigger::Level, Polarity::Low).unwrap();
    a.assert();
    a.assert();
    b.assert();
    a.deassert();
    assert_eq!(*recorder.0.lock().unwrap(), [(5, true)]);
    drop(b);
    assert_eq!(*recorder.0.lock().unwrap(), [(5, true), (5, false)]);
}

#[test]
fn restoring_a_level_makes_no_edge_and_counts() {
    let (recorder, table) = table();
    let a = table.line(4, Trigger::Level, Polarity::High).unwrap();
    let b = a.share();
    a.restore(true);
    a.restore(true);
    assert!(a.is_asserted());
    b.assert();
    b.deassert();
    assert!(recorder.0.lock().unwrap().is_empty());
    a.deassert();
    assert_eq!(*recorder.0.lock().unwrap(), [(4, false)]);
}

#[test]
fn what_stands_between_lines_restores_what_it_drives() {
    /// Passes its line on to another.
    struct Between(IrqLine);
    impl LineTarget for Between {
        fn set_level(&self, _line: u32, asserted: bool) {
            self.0.set(asserted);
        }
        fn restore_level(&self, _line: u32, asserted: bool) {
            self.0.restore(asserted);
        }
    }
    let (recorder, table) = table();
    let driven = table.line(4, Trigger::Level, Polarity::High).unwrap();
    let description = driven.description();
    let between = Arc::new(Between(driven));
    let a = IrqLine::to(between.clone(), description);
    let b = a.share();
    a.restore(true);
    b.restore(true);
    a.restore(false);
    assert!(between.0.is_asserted(), "one of two still asserts it");
    b.restore(false);
    assert!(!between.0.is_asserted());
    a.restore(true);
    assert!(recorder.0.lock().unwrap().is_empty());
    a.deassert();
    assert_eq!(*recorder.0.lock().unwrap(), [(4, false)]);
}

#[test]
fn lines_are_finite() {
    let (_, table) = table();
    assert!(matches!(
        table.line(8, Trigger::Edge, Polarity::High),
        Err(IrqError::NoSuchLine { line: 8, first: 4, last: 7 })
    ));
    let held: Vec<_> = (0..4).map(|_| table.allocate(4..=7, Trigger::Edge, Polarity::High).unwrap()).collect();
    assert!(matches!(
        table.allocate(4..=7, Trigger::Edge, Polarity::High),
        Err(IrqError::NoLineLeft { first: 4, count: 4 })
    ));
    drop(held);
    assert_eq!(table.allocate(4..=7, Trigger::Edge, Polarity::High).unwrap().description().number, 4);
}

#[test]
fn edges_of_many_threads_are_as_many_edges() {
    #[derive(Default)]
    struct Edges(AtomicUsize);
    impl LineTarget for Edges {
        fn set_level(&self, _line: u32, asserted: bool) {
            self.0.fetch_add(usize::from(asserted), Ordering::Relaxed);
        }
    }
    const EACH: usize = 2000;
    let edges = Arc::new(Edges::default());
    let description = LineDescription { number: 4, trigger: Trigger::Edge, polarity: Polarity::High };
    let line = IrqLine::to(edges.clone(), description);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..EACH).for_each(|_| line.pulse()));
        }
    });
    assert_eq!(edges.0.load(Ordering::Relaxed), 4 * EACH);
    assert!(!line.is_asserted());
}

#[test]
fn a_detached_line_serves() {
    let line = IrqLine::detached();
    line.pulse();
    line.assert();
    assert!(line.is_asserted());
    assert!(line.eventfd().is_none());
}

proptest! {
    #[test]
    fn the_target_sees_the_or_of_all_handles(steps in proptest::collection::vec((0usize..4, any::<bool>()), 0..64)) {
        let (recorder, table) = table();
        let handles: Vec<_> = (0..4).map(|_| table.line(6, Trigger::Level, Polarity::High).unwrap()).collect();
        let (mut model, mut level, mut expected) = ([false; 4], false, Vec::new());
        for (who, asserted) in steps {
            handles[who].set(asserted);
            model[who] = asserted;
            let now = model.contains(&true);
            if now != level {
                expected.push((6, now));
            }
            level = now;
        }
        prop_assert_eq!(&*recorder.0.lock().unwrap(), &expected);
    }
}

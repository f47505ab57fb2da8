use std::sync::Arc;

use super::*;

#[test]
fn what_is_given_up_is_not_waited_for() {
    let wanted = Arc::<Wanted>::default();
    assert_eq!(wanted.wait(|| 7).unwrap(), Some(7));
    // A host that hangs: it answers when this says so, which is after all the rest.
    let (answer, hangs) = channel::<()>();
    let (begun, has_begun) = channel();
    let (left, has_left) = channel();
    let other = wanted.clone();
    let waits = thread::spawn(move || {
        other.wait(move || {
            begun.send(()).unwrap();
            assert!(hangs.recv().is_err());
            left.send(()).unwrap();
        })
    });
    has_begun.recv().unwrap();
    assert!(wanted.give_up(Why::Cancelled));
    assert_eq!(waits.join().unwrap().unwrap(), None);
    assert_eq!(wanted.check(), Err(Why::Cancelled));
    assert_eq!(wanted.pass(), Err(Why::Cancelled));
    // The first reason stands.
    assert!(wanted.give_up(Why::Ended));
    assert_eq!(wanted.check(), Err(Why::Cancelled));
    // What comes later is not waited for either.
    let (answer_too, hangs) = channel::<()>();
    assert_eq!(wanted.wait(move || hangs.recv().is_err()).unwrap(), None);
    drop((answer, answer_too));
    has_left.recv().unwrap();
}

#[test]
fn what_is_past_can_not_be_given_up() {
    let wanted = Wanted::default();
    assert_eq!(wanted.pass(), Ok(()));
    assert!(!wanted.give_up(Why::Ended));
    assert_eq!((wanted.check(), wanted.pass()), (Ok(()), Ok(())));
}

#[test]
fn a_panic_is_the_end_of_a_wait() {
    assert_eq!(Wanted::default().wait(|| panic!("as a test does")).unwrap(), None::<()>);
}

#[test]
fn who_comes_late_is_told_at_once() {
    let event = Event::default();
    let (tell, told) = channel();
    let (early, late) = (tell.clone(), tell);
    event.on(move || early.send("early").unwrap());
    assert!(told.try_recv().is_err());
    event.happen();
    event.happen();
    event.on(move || late.send("late").unwrap());
    assert_eq!(told.into_iter().collect::<Vec<_>>(), ["early", "late"]);
}

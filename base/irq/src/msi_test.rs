use std::collections::BTreeMap;

use super::*;

/// Delivers into a list; its routes deliver when `pump` is called, as a kernel would by itself.
#[derive(Default)]
struct Recorder {
    delivered: Mutex<Vec<(MsiMessage, Option<RequesterId>)>>,
    routes: Mutex<BTreeMap<Route, (EventFd, Option<RouteChange>)>>,
    updates: Mutex<Vec<usize>>,
    with_routes: bool,
}

impl Recorder {
    fn pump(&self) {
        for (fd, change) in self.routes.lock().unwrap().values() {
            if let Some(RouteChange { message: Some(message), requester, .. }) = change
                && fd.read().is_ok()
            {
                self.delivered.lock().unwrap().push((*message, *requester));
            }
        }
    }
}

impl MsiTarget for Recorder {
    fn signal(&self, message: MsiMessage, requester: Option<RequesterId>) -> Result<(), IrqError> {
        self.delivered.lock().unwrap().push((message, requester));
        Ok(())
    }
    fn routes(&self) -> Option<&dyn MsiRoutes> {
        self.with_routes.then_some(self)
    }
}

impl MsiRoutes for Recorder {
    fn allocate(&self) -> Result<(Route, EventFd), IrqError> {
        let mut routes = self.routes.lock().unwrap();
        let route = Route(routes.len() as u32);
        let fd = EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK).unwrap();
        routes.insert(route, (fd.try_clone().unwrap(), None));
        Ok((route, fd))
    }
    fn update(&self, changes: &[RouteChange]) -> Result<(), IrqError> {
        self.updates.lock().unwrap().push(changes.len());
        for change in changes {
            self.routes.lock().unwrap().get_mut(&change.route).unwrap().1 = Some(*change);
        }
        Ok(())
    }
    fn free(&self, route: Route) {
        self.routes.lock().unwrap().remove(&route);
    }
}

const MESSAGE: MsiMessage = MsiMessage { address: 0xfee0_0000, data: 0x41 };
const WHO: Option<RequesterId> = Some(RequesterId(0x0018));

#[test]
fn a_masked_vector_is_pending_and_is_delivered_once_unmasked() {
    let target = Arc::new(Recorder::default());
    let msi = Msi::new(target.clone(), WHO);
    msi.configure(MESSAGE, true).unwrap();
    msi.signal().unwrap();
    msi.signal().unwrap();
    assert!(msi.state().pending);
    assert!(target.delivered.lock().unwrap().is_empty());
    msi.configure(MESSAGE, false).unwrap();
    assert_eq!(*target.delivered.lock().unwrap(), [(MESSAGE, WHO)]);
    assert!(!msi.state().pending);
    assert!(msi.eventfd().unwrap().is_none());
}

#[test]
fn what_an_eventfd_brings_while_masked_is_pending_too() {
    let target = Arc::new(Recorder { with_routes: true, ..Recorder::default() });
    let msi = Msi::new(target.clone(), WHO);
    let fd = msi.eventfd().unwrap().unwrap();
    fd.write(1).unwrap();
    target.pump();
    assert!(target.delivered.lock().unwrap().is_empty());
    assert!(msi.state().pending);
    msi.configure(MESSAGE, false).unwrap();
    fd.write(1).unwrap();
    target.pump();
    assert_eq!(*target.delivered.lock().unwrap(), [(MESSAGE, WHO), (MESSAGE, WHO)]);
    drop(msi);
    assert!(target.routes.lock().unwrap().is_empty(), "a dropped vector gives its route back");
}

#[test]
fn routes_change_in_one_batch() {
    let target = Arc::new(Recorder { with_routes: true, ..Recorder::default() });
    let vectors: Vec<_> = (0..8).map(|_| Msi::new(target.clone(), WHO)).collect();
    let fds: Vec<_> = vectors.iter().map(|msi| msi.eventfd().unwrap().unwrap()).collect();
    target.updates.lock().unwrap().clear();
    let all: Vec<_> = vectors.iter().map(|msi| (msi, MESSAGE, false)).collect();
    Msi::configure_all(&all).unwrap();
    assert_eq!(*target.updates.lock().unwrap(), [8]);
    fds[3].write(1).unwrap();
    target.pump();
    assert_eq!(target.delivered.lock().unwrap().len(), 1);
}

#[test]
fn a_restored_vector_keeps_pending_and_makes_no_edge() {
    let target = Arc::new(Recorder::default());
    let msi = Msi::new(target.clone(), None);
    let saved = VectorState { message: MESSAGE, masked: true, pending: true };
    msi.restore(&saved).unwrap();
    assert_eq!(msi.state(), saved);
    assert!(target.delivered.lock().unwrap().is_empty());
    msi.clear_pending();
    msi.configure(MESSAGE, false).unwrap();
    assert!(target.delivered.lock().unwrap().is_empty());
}

#[test]
fn a_function_that_moves_is_named_by_its_new_place() {
    let target = Arc::new(Recorder { with_routes: true, ..Recorder::default() });
    let requester = Requester::from(RequesterId(0x0100));
    let msi = Msi::of(target.clone(), Some(requester.clone()));
    msi.configure(MESSAGE, false).unwrap();
    let fd = msi.eventfd().unwrap().unwrap();
    requester.set(RequesterId(0x0200));
    msi.signal().unwrap();
    msi.configure(MESSAGE, false).unwrap();
    fd.write(1).unwrap();
    target.pump();
    let moved = (MESSAGE, Some(RequesterId(0x0200)));
    assert_eq!(*target.delivered.lock().unwrap(), [moved, moved]);
}

//! Who wants to hear of the end of interrupts.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use skep_irq::{EoiListener, EoiSubscription};

/// The listeners of one controller. Its lock is a leaf: nothing is called under it.
#[derive(Default)]
pub(crate) struct EoiListeners(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    next: u64,
    rows: Vec<Row>,
}

struct Row {
    key: u64,
    line: u32,
    listener: EoiListener,
}

/// A row of the table; dropping it removes the row.
struct Subscription {
    table: Weak<Mutex<Table>>,
    key: u64,
}

impl EoiListeners {
    pub(crate) fn subscribe(&self, line: u32, listener: EoiListener) -> EoiSubscription {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = table.next;
        table.next += 1;
        table.rows.push(Row { key, line, listener });
        Box::new(Subscription { table: Arc::downgrade(&self.0), key })
    }

    /// Calls the listeners of the lines that `ended` names, with no lock held, and says whether there were any.
    pub(crate) fn call(&self, ended: impl Fn(u32) -> bool) -> bool {
        let called: Vec<EoiListener> = {
            let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            table.rows.iter().filter(|row| ended(row.line)).map(|row| row.listener.clone()).collect()
        };
        called.iter().for_each(|listener| listener());
        !called.is_empty()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(table) = self.table.upgrade() {
            table.lock().unwrap_or_else(PoisonError::into_inner).rows.retain(|row| row.key != self.key);
        }
    }
}

//! Which request caused a change: for the events.
//!
//! A request and the change that it causes meet only in the instance: the request ends when its change is
//! published, and the event of it may be logged a little later. So a request is remembered with the
//! revisions between which it was under way, and an event belongs to it when its revision is one of those.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dormouse_instance::{InstanceEvent, InstanceView};
use dormouse_model::WorkloadId;

/// Instances whose requests are remembered; events of more name none.
const INSTANCES: usize = 4096;

/// Requests under way for one instance that are remembered; more are not named.
const REQUESTS: usize = 8;

/// The requests under way. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Causes {
    book: Arc<Mutex<HashMap<WorkloadId, Vec<Cause>>>>,
}

#[derive(Debug)]
struct Cause {
    request: String,
    /// The revision before it.
    after: u64,
    /// The last revision of its time; `None` while it is under way.
    until: Option<u64>,
}

/// A request that is under way. Forgotten when it is dropped without an end: its caller went away.
#[derive(Debug)]
pub(crate) struct UnderWay {
    causes: Causes,
    id: WorkloadId,
    request: String,
}

impl Causes {
    /// `request` begins to change the instance, which is at `revision`; 0 for one that is not there yet.
    pub(crate) fn begin(&self, request: String, id: WorkloadId, revision: u64) -> UnderWay {
        let mut book = self.book();
        let room = book.len() < INSTANCES || book.contains_key(&id);
        if room && !request.is_empty() {
            let causes = book.entry(id).or_default();
            if causes.len() < REQUESTS {
                causes.push(Cause {
                    request: request.clone(),
                    after: revision,
                    until: None,
                });
            }
        }
        drop(book);
        UnderWay {
            causes: self.clone(),
            id,
            request,
        }
    }

    /// The request that was under way when this happened; empty for none.
    pub(crate) fn of(&self, event: &InstanceEvent) -> String {
        let (id, revision) = (event.view().id, event.view().revision);
        let mut book = self.book();
        let Some(causes) = book.get_mut(&id) else {
            return String::new();
        };
        causes.retain(|cause| cause.until.is_none_or(|until| revision <= until));
        let found = causes.iter().find(|cause| cause.after < revision);
        let request = found.map(|cause| cause.request.clone()).unwrap_or_default();
        if causes.is_empty() || matches!(event, InstanceEvent::Deleted(_)) {
            book.remove(&id);
        }
        request
    }

    /// Every change of the book leaves it whole.
    fn book(&self) -> MutexGuard<'_, HashMap<WorkloadId, Vec<Cause>>> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the end of a request's time; forgets it when no event of that time can come.
    fn end(&self, id: WorkloadId, request: &str, until: Option<u64>) {
        let mut book = self.book();
        let Some(causes) = book.get_mut(&id) else { return };
        for cause in causes.iter_mut().filter(|cause| cause.request == request) {
            cause.until = Some(until.unwrap_or(cause.after));
        }
        causes.retain(|cause| cause.until.is_none_or(|until| until > cause.after));
        if causes.is_empty() {
            book.remove(&id);
        }
    }
}

impl UnderWay {
    /// The request has ended, with the instance as it is now; `None` when it is gone.
    pub(crate) fn end(self, view: Option<InstanceView>) {
        let until = view.map_or(u64::MAX, |view| view.revision);
        self.causes.end(self.id, &self.request, Some(until));
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut book = self.causes.book();
        let Some(causes) = book.get_mut(&self.id) else {
            return;
        };
        causes.retain(|cause| cause.request != self.request || cause.until.is_some());
        if causes.is_empty() {
            book.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dormouse_instance::record::{InstanceRecord, Remembered};

    /// The event of a change to `revision`.
    fn event(revision: u64) -> InstanceEvent {
        let record = InstanceRecord {
            id: vec![0; 16],
            phase: "stopped".to_owned(),
            spec: Some(dormouse_instance::record::SpecRecord {
                name: "web".to_owned(),
                image: "web".to_owned(),
                vcpus: 1,
                memory: 1 << 29,
                disk: 1 << 30,
                placement: "auto".to_owned(),
                ..Default::default()
            }),
            ipv4: vec![10, 0, 0, 2],
            ipv6: vec![0; 16],
            mac: vec![2, 0, 0, 0, 0, 1],
            memory: Some(dormouse_instance::record::MemoryRecord {
                placement: "spill".to_owned(),
                size: 1 << 29,
                ..Default::default()
            }),
            ..Default::default()
        };
        let mut view = Remembered::from_record(record).unwrap().view;
        view.revision = revision;
        InstanceEvent::Updated(Box::new(view))
    }

    #[test]
    fn an_event_names_the_request_that_was_under_way() {
        let causes = Causes::default();
        let id = event(0).view().id;
        assert_eq!(causes.of(&event(5)), "");
        let begun = causes.begin("r1".to_owned(), id, 5);
        assert_eq!(causes.of(&event(5)), "");
        assert_eq!(causes.of(&event(6)), "r1");
        // Ended at 8; its last event is logged after its answer.
        let mut last = event(8).view().clone();
        begun.end(Some(last.clone()));
        assert_eq!(causes.of(&event(8)), "r1");
        assert_eq!(causes.of(&event(9)), "");
        assert!(causes.book().is_empty());
        // One that changed nothing leaves nothing.
        last.revision = 9;
        causes.begin("r2".to_owned(), id, 9).end(Some(last));
        assert!(causes.book().is_empty());
        // Nor does one whose caller went away.
        drop(causes.begin("r3".to_owned(), id, 9));
        assert!(causes.book().is_empty());
        // A removal is named, and the last of it.
        causes.begin("r4".to_owned(), id, 9).end(None);
        let InstanceEvent::Updated(view) = event(10) else {
            panic!("updated")
        };
        assert_eq!(causes.of(&InstanceEvent::Deleted(view)), "r4");
        assert!(causes.book().is_empty());
    }
}

//! Who may still come in when the daemon goes down: requests under way run on, new ones are refused with a
//! code that says so, and health is told to the last. The transport closes when nothing is under way.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};

/// How paths begin that are served to the end.
const ALWAYS: &str = "/grpc.health.v1.Health/";

/// The door of one server. Clones are the same door.
#[derive(Debug, Clone)]
pub struct Door {
    leaving: CancellationToken,
    refusal: fn() -> Status,
    inside: Arc<watch::Sender<usize>>,
}

impl Door {
    /// Open until `leaving` is cancelled; whoever comes then is told `refusal`.
    #[must_use]
    pub fn new(leaving: CancellationToken, refusal: fn() -> Status) -> Self {
        Self {
            leaving,
            refusal,
            inside: Arc::new(watch::Sender::new(0)),
        }
    }

    /// Resolves when the door is closed and nobody is inside any more. The caller has a deadline for that.
    pub async fn deserted(self) {
        self.leaving.cancelled().await;
        let mut inside = self.inside.subscribe();
        // The sender is ours.
        let _left = inside.wait_for(|count| *count == 0).await;
    }
}

/// One who is inside, until dropped.
#[derive(Debug)]
struct Guest(Arc<watch::Sender<usize>>);

impl Guest {
    fn of(door: &Door) -> Self {
        door.inside.send_modify(|count| *count += 1);
        Self(Arc::clone(&door.inside))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count = count.saturating_sub(1));
    }
}

impl<S> Layer<S> for Door {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded {
            inner,
            door: self.clone(),
        }
    }
}

/// A service behind the door.
#[derive(Debug, Clone)]
pub struct Guarded<S> {
    inner: S,
    door: Door,
}

type Answer<E> = Pin<Box<dyn Future<Output = Result<Response<Body>, E>> + Send>>;

impl<S, B> Service<Request<B>> for Guarded<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Answer<S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let always = request.uri().path().starts_with(ALWAYS);
        // In before the look: whoever is not seen leaving is waited for.
        let guest = Guest::of(&self.door);
        if self.door.leaving.is_cancelled() && !always {
            let refused = (self.door.refusal)().into_http();
            return Box::pin(async { Ok(refused) });
        }
        let work = self.inner.call(request);
        Box::pin(async move {
            let answered = work.await;
            drop(guest);
            answered
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use tokio::sync::oneshot;
    use tower::{ServiceExt as _, service_fn};

    fn to(path: &str) -> Request<()> {
        Request::builder().uri(path).body(()).unwrap()
    }

    fn refused() -> Status {
        Status::unavailable("leaving")
    }

    #[tokio::test]
    async fn new_ones_are_refused_and_those_inside_waited_for() {
        let leaving = CancellationToken::new();
        let door = Door::new(leaving.clone(), refused);
        let answer = || async { Ok::<_, Infallible>(Response::new(Body::empty())) };
        let quick = door.layer(service_fn(move |_: Request<()>| answer()));
        let (release, held) = oneshot::channel::<()>();
        let mut held = Some(held);
        let slow = door.layer(service_fn(move |_: Request<()>| {
            let held = held.take();
            async move {
                if let Some(held) = held {
                    held.await.unwrap();
                }
                Ok::<_, Infallible>(Response::new(Body::empty()))
            }
        }));
        let status = |response: Response<Body>| response.headers().get("grpc-status").cloned();
        let mut under_way = Box::pin(slow.oneshot(to("/a/B")));
        assert!(futures_util::poll!(&mut under_way).is_pending());
        let mut deserted = Box::pin(door.clone().deserted());
        assert!(futures_util::poll!(&mut deserted).is_pending());
        leaving.cancel();
        assert!(futures_util::poll!(&mut deserted).is_pending(), "one is inside");
        let told = status(quick.clone().oneshot(to("/a/B")).await.unwrap());
        assert_eq!(told.unwrap(), "14");
        let health = quick.oneshot(to("/grpc.health.v1.Health/Check")).await.unwrap();
        assert_eq!(status(health), None);
        release.send(()).unwrap();
        assert_eq!(status(under_way.await.unwrap()), None);
        deserted.await;
    }
}

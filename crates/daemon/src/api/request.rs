//! The id of a request: given by the caller, or made here; on every answer, in every line of the log.
//!
//! ```text
//!  request ──▶ id from `dormouse-request-id`, else a new one ──▶ span "request" around the service
//!  answer  ◀── the id in the header, and in the trailers ◀──────── detail of an error
//! ```

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use dormouse_proto::metadata::REQUEST_ID;
use http::header::{HeaderName, HeaderValue};
use http_body::Frame;
use tonic::body::Body;
use tracing::Instrument as _;

use super::refusal::FieldError;
use super::status::status;

/// The longest id of a caller.
const LONGEST: usize = 64;

static HEADER: HeaderName = HeaderName::from_static(REQUEST_ID);

tokio::task_local! {
    static CURRENT: RequestId;
}

/// An id that is fit for a header.
#[derive(Debug, Clone)]
struct RequestId(HeaderValue);

impl RequestId {
    /// 128 random bits in hexadecimal.
    fn fresh() -> Self {
        let mut bytes = [0_u8; 16];
        if let Err(error) = dormouse_sys::random::fill(&mut bytes) {
            // Only a name in a log: one that is used twice is better than a request that is refused.
            tracing::error!(%error, "no random bytes for the id of a request");
        }
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Self(HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("unknown")))
    }

    /// What the caller gave; `None` when it is too long or not printable.
    fn given(value: &HeaderValue) -> Option<Self> {
        let text = value.to_str().ok()?;
        let fits =
            !text.is_empty() && text.len() <= LONGEST && text.bytes().all(|byte| byte.is_ascii_graphic());
        fits.then(|| Self(value.clone()))
    }

    fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

/// The id of the request that this task serves; empty for a task of the daemon's own.
pub(crate) fn current() -> String {
    CURRENT.try_with(|id| id.as_str().to_owned()).unwrap_or_default()
}

/// `work` under the id and in the span of the request that is being served, for a task of its own.
pub(super) fn carried<F: Future>(work: F) -> impl Future<Output = F::Output> {
    let (id, span) = (CURRENT.try_with(Clone::clone).ok(), tracing::Span::current());
    async move {
        match id {
            Some(id) => CURRENT.scope(id, work).await,
            None => work.await,
        }
    }
    .instrument(span)
}

/// Gives every request its id.
#[derive(Debug, Clone, Copy, Default)]
pub struct RequestIds;

impl<S> tower::Layer<S> for RequestIds {
    type Service = Identified<S>;

    fn layer(&self, inner: S) -> Identified<S> {
        Identified { inner }
    }
}

/// A service whose requests have ids.
#[derive(Debug, Clone)]
pub struct Identified<S> {
    inner: S,
}

type Answered<E> = Pin<Box<dyn Future<Output = Result<http::Response<Body>, E>> + Send>>;

impl<S, B> tower::Service<http::Request<B>> for Identified<S>
where
    S: tower::Service<http::Request<B>, Response = http::Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    B: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Answered<S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Answered<S::Error> {
        // The one that was polled to readiness serves; its copy waits for the next.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        let wrong = request.headers().get(&HEADER).map(RequestId::given);
        let (id, usable) = match wrong {
            None => (RequestId::fresh(), true),
            Some(None) => (RequestId::fresh(), false),
            Some(Some(id)) => (id, true),
        };
        let method = request.uri().path().to_owned();
        let span = tracing::info_span!("request", request_id = id.as_str(), method);
        let begun = Instant::now();
        let answer = async move {
            let response = if usable {
                inner.call(request).await?
            } else {
                let why = "is not 1 to 64 printable characters";
                status(&FieldError::new(REQUEST_ID, why)).into_http()
            };
            let code = response
                .headers()
                .get("grpc-status")
                .and_then(|code| code.to_str().ok());
            match code.unwrap_or("0") {
                "0" => tracing::debug!(took = ?begun.elapsed(), "answered"),
                code => tracing::info!(grpc_status = code, took = ?begun.elapsed(), "refused"),
            }
            Ok(response)
        };
        Box::pin(async move {
            let mut response = CURRENT.scope(id.clone(), answer).instrument(span).await?;
            response.headers_mut().insert(HEADER.clone(), id.0.clone());
            Ok(response.map(|inner| Body::new(WithId { inner, id: id.0 })))
        })
    }
}

/// A body whose trailers have the id.
struct WithId {
    inner: Body,
    id: HeaderValue,
}

impl http_body::Body for WithId {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        let frame = std::task::ready!(Pin::new(&mut self.inner).poll_frame(context));
        Poll::Ready(frame.map(|frame| {
            frame.map(|frame| match frame.into_trailers() {
                Ok(mut trailers) => {
                    trailers.insert(HEADER.clone(), self.id.clone());
                    Frame::trailers(trailers)
                }
                Err(frame) => frame,
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use tower::{Layer as _, ServiceExt as _};

    /// Trailers after nothing, as a unary answer ends.
    struct Ended(bool);

    impl http_body::Body for Ended {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            let first = !std::mem::replace(&mut self.0, true);
            let trailers = http::HeaderMap::from_iter([(
                HeaderName::from_static("grpc-status"),
                HeaderValue::from_static("0"),
            )]);
            Poll::Ready(first.then(|| Ok(Frame::trailers(trailers))))
        }
    }

    async fn answered(given: Option<&str>) -> (http::Response<Body>, String) {
        let (tell, told) = std::sync::mpsc::channel();
        let service = tower::service_fn(move |_: http::Request<()>| {
            let tell = tell.clone();
            async move {
                // Also in a task that the request began.
                let mut tasks = tokio::task::JoinSet::new();
                tasks.spawn(carried(async { current() }));
                tell.send((current(), tasks.join_next().await.unwrap().unwrap()))
                    .unwrap();
                Ok::<_, Infallible>(http::Response::new(Body::new(Ended(false))))
            }
        });
        let mut request = http::Request::new(());
        if let Some(given) = given {
            let value = HeaderValue::from_bytes(given.as_bytes()).unwrap();
            request.headers_mut().insert(HEADER.clone(), value);
        }
        let response = RequestIds.layer(service).oneshot(request).await.unwrap();
        let (seen, carried) = told.try_recv().unwrap_or_default();
        assert_eq!(seen, carried);
        (response, seen)
    }

    fn id_of(response: &http::Response<Body>) -> String {
        let id = response.headers().get(&HEADER).unwrap();
        id.to_str().unwrap().to_owned()
    }

    #[tokio::test]
    async fn an_answer_has_the_id_that_the_caller_gave_in_header_and_trailers() {
        let (mut response, seen) = answered(Some("trace-7")).await;
        assert_eq!((id_of(&response).as_str(), seen.as_str()), ("trace-7", "trace-7"));
        let body = response.body_mut();
        let frame =
            std::future::poll_fn(|context| http_body::Body::poll_frame(Pin::new(&mut *body), context));
        let trailers = frame.await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(trailers.get(&HEADER).unwrap(), "trace-7");
        assert_eq!(trailers.get("grpc-status").unwrap(), "0");
    }

    #[tokio::test]
    async fn without_one_the_daemon_gives_a_fresh_one() {
        let ((one, seen), (two, _)) = (answered(None).await, answered(None).await);
        assert_eq!(id_of(&one), seen);
        assert_eq!(seen.len(), 32);
        assert_ne!(id_of(&one), id_of(&two));
    }

    #[tokio::test]
    async fn an_unusable_one_is_refused() {
        let long = "x".repeat(65);
        for given in ["", "a b", &long, "\u{e9}"] {
            let (response, seen) = answered(Some(given)).await;
            assert_eq!(response.headers().get("grpc-status").unwrap(), "3", "{given:?}");
            assert_eq!((seen.as_str(), id_of(&response).len()), ("", 32));
        }
    }
}

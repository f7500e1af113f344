//! A last question before the last request of an upload.
//!
//! Most servers check no condition when they put parts together, and OpenDAL sends what is left of the parts and that
//! request in one go, which may take minutes. So the transport itself stops before it: whoever closes a writer here is
//! asked whether to go on, and can look at the store at the latest moment there is. Requests are counted here, too, each as
//! often as it is sent. And who only wants to know what is at hand already, keeps them back ([`unsent`]).

use std::cell::Cell;
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use futures::StreamExt;
use http::{Method, Request, Response};
use opendal::raw::ServiceOperation;
use opendal::{Buffer, Error, ErrorKind, HttpBody, HttpTransport, Result};
use opendal_http_transport_reqwest::ReqwestTransport;
use tokio::sync::{mpsc, oneshot};

use super::requests::{kind_of, says_no};
use crate::metrics::{Kind, StoreMeter};
use crate::store::StoreError;

tokio::task_local! {
    /// Where requests of this task ask, if they have to.
    static ASK: mpsc::Sender<oneshot::Sender<bool>>;

    /// Requests of this task are not sent; whether there was one.
    static HELD: Cell<bool>;
}

/// Requests that only prepare the last one.
const PREPARATIONS: [&str; 3] = ["CreateMultipartUpload", "InitiateMultipartUpload", "UploadPart"];

/// Runs `close`; each request of it that may change an object waits until `check` is done, and is sent only if that is
/// fine. Else `check`'s error is the result. Parts that are sent by other tasks do not wait.
pub(super) async fn guarded<T, C>(
    close: impl Future<Output = std::result::Result<T, StoreError>>,
    check: impl Fn() -> C,
) -> std::result::Result<T, StoreError>
where
    C: Future<Output = std::result::Result<(), StoreError>>,
{
    let (ask, mut asked) = mpsc::channel(1);
    let mut close = pin!(ASK.scope(ask, close));
    loop {
        let answer: oneshot::Sender<bool> = tokio::select! {
            result = &mut close => return result,
            Some(answer) = asked.recv() => answer,
        };
        let checked = check().await;
        // Fails only if the request was given up meanwhile.
        let _ = answer.send(checked.is_ok());
        if let Err(e) = checked {
            // The writer comes to its own end, so that it can be aborted; whatever else it asks is refused.
            drop(asked);
            let _ = close.await;
            return Err(e);
        }
    }
}

/// Runs `future` without sending a request. `None`: it wanted to send one, which failed, and that is all that came of it.
pub(super) async fn unsent<T>(future: impl Future<Output = T>) -> Option<T> {
    HELD.scope(Cell::new(false), async {
        let result = future.await;
        (!HELD.with(Cell::get)).then_some(result)
    })
    .await
}

/// Sends requests, and counts them; but those in a [`guarded`] only after asking.
#[derive(Debug)]
pub(super) struct Gate {
    pub transport: ReqwestTransport,
    pub meter: Arc<StoreMeter>,
}

impl HttpTransport for Gate {
    async fn fetch(&self, request: Request<Buffer>) -> Result<Response<HttpBody>> {
        if HELD.try_with(|held| held.set(true)).is_ok() {
            // Not one that is tried again.
            return Err(Error::new(ErrorKind::Unexpected, "no request is to be sent now"));
        }
        if let Ok(ask) = ASK.try_with(Clone::clone)
            && is_last(&request)
        {
            let (answer, answered) = oneshot::channel();
            let go = ask.send(answer).await.is_ok() && answered.await.unwrap_or(false);
            if !go {
                return Err(Error::new(ErrorKind::ConditionNotMatch, "the object has changed during the upload"));
            }
        }
        self.counted(request).await
    }
}

impl Gate {
    /// Sends a request. What is counted is the time to the head of the answer, and the content that goes over the wire.
    async fn counted(&self, request: Request<Buffer>) -> Result<Response<HttpBody>> {
        let kind = kind_of(&request);
        if matches!(kind, Kind::Put | Kind::Part) {
            self.meter.sent(request.body().len() as u64);
        }
        let began = Instant::now();
        let answer = self.transport.fetch(request).await;
        let failed = answer.as_ref().map_or(true, |answer| says_no(answer.status()));
        self.meter.request(kind, began.elapsed(), failed);
        let answer = answer?;
        if kind != Kind::Get || failed {
            return Ok(answer);
        }
        let meter = Arc::clone(&self.meter);
        Ok(answer.map(|body| {
            body.map_inner(|stream| {
                Box::new(stream.inspect(move |piece| {
                    if let Ok(piece) = piece {
                        meter.received(piece.len() as u64);
                    }
                }))
            })
        }))
    }
}

fn is_last(request: &Request<Buffer>) -> bool {
    let prepares = request.extensions().get::<ServiceOperation>().is_some_and(|op| PREPARATIONS.contains(&op.0));
    !prepares && !matches!(*request.method(), Method::GET | Method::HEAD)
}

//! From a [`Backend`] to OpenDAL operators: our own HTTP client, timeouts inside retries, and capabilities masked where
//! their claims are wrong.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use opendal::layers::{CapabilityOverrideLayer, RetryEvent, RetryLayer, TimeoutLayer};
use opendal::{Capability, HttpTransporter, Operator};
use opendal_http_transport_reqwest::ReqwestTransport;
use reqwest::header::{ACCEPT_ENCODING, HeaderMap, HeaderValue};

use super::error::Cleaner;
use super::gate::Gate;
#[cfg(feature = "s3")]
use super::keys::Keys;
use super::requests::kind_of_retry;
use super::services::Upload;
use super::url::{Backend, BackendError};
use crate::metrics::StoreMeter;

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Shortest time that one upload request gets, whatever the request timeout: a part at 300 kB/s.
const UPLOAD_TIMEOUT_MIN: Duration = Duration::from_secs(60);

/// Most idle connections kept per host.
const POOL_IDLE: usize = 256;

/// The operators of one store. They share connections and credentials.
#[derive(Clone, Debug)]
pub(super) struct Operators {
    /// For everything but uploads: short tries, so that several fit into the request's time.
    pub ask: Operator,
    /// As `ask`, with one try.
    pub ask_once: Operator,
    /// For uploads: each request has the time that a part may take. Not retried where a request that half succeeded cannot
    /// be repeated.
    pub write: Operator,
    /// For markers, by [`opendal::raw::Service`]: the service as it is, but for timeouts and retries. OpenDAL's own operations
    /// know no content and no metadata of a name that ends with a slash.
    pub raw: Operator,
    /// The keys that all of them sign with, where they can be replaced.
    #[cfg(feature = "s3")]
    pub keys: Option<Keys>,
}

impl Operators {
    /// Signs with the keys of `others` from now on, requests of what is under way included.
    pub fn follow(&self, others: &Operators) {
        #[cfg(feature = "s3")]
        if let (Some(keys), Some(new)) = (&self.keys, &others.keys) {
            keys.follow(new);
        }
        #[cfg(not(feature = "s3"))]
        let _ = others;
    }
}

tokio::task_local! {
    static RETRIED: Cell<bool>;
}

/// Runs `future`, and tells whether OpenDAL repeated a request meanwhile: then a refusal may be the echo of our own success.
pub(super) async fn noting_retries<T>(future: impl Future<Output = T>) -> (T, bool) {
    let (result, retried) = RETRIED
        .scope(Cell::new(false), async {
            let result = future.await;
            (result, RETRIED.with(Cell::get))
        })
        .await;
    if retried {
        note_retry();
    }
    (result, retried)
}

/// Whether OpenDAL has repeated a request within the innermost [`noting_retries`] around this.
pub(super) fn was_retried() -> bool {
    RETRIED.try_with(Cell::get).unwrap_or(false)
}

/// Tasks of OpenDAL's own (parts in parallel) are outside of all scopes; their requests can be repeated safely.
fn note_retry() {
    let _ = RETRIED.try_with(|retried| retried.set(true));
}

/// Builds the operators, without asking the store.
///
/// # Errors
/// [`BackendError::Refused`] with OpenDAL's reason.
pub(super) fn build(
    backend: &Backend,
    request_timeout: Duration,
    cleaner: &Arc<Cleaner>,
    meter: &Arc<StoreMeter>,
) -> Result<Operators, BackendError> {
    let scheme = backend.service.scheme;
    let refused = |why: String| BackendError::Refused { scheme, why: cleaner.clean(&why) };
    let config = backend.config.iter().map(|(key, value)| ((*key).to_owned(), value.clone()));
    #[cfg(feature = "s3")]
    let keys = Keys::of(backend);
    #[cfg(feature = "s3")]
    let base = match &keys {
        Some(keys) => keys.operator(config),
        None => Operator::via_iter(scheme, config),
    };
    #[cfg(not(feature = "s3"))]
    let base = Operator::via_iter(scheme, config);
    let base = base.map_err(|e| refused(e.to_string()))?;
    let upload_timeout = request_timeout.max(UPLOAD_TIMEOUT_MIN);
    let mut headers = HeaderMap::new();
    if scheme == "gcs" {
        // Objects are shown as they are stored. Google unpacks them for clients that do not say that they take them packed.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
    }
    let client = reqwest::Client::builder()
        .default_headers(headers)
        .no_gzip()
        .no_brotli()
        .no_deflate()
        .no_zstd()
        .user_agent(concat!("ovfs/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(upload_timeout)
        // A redirect could lead the broker anywhere; no service here needs one.
        .redirect(reqwest::redirect::Policy::none())
        .pool_max_idle_per_host(POOL_IDLE)
        .http1_only()
        .build()
        .map_err(|e| refused(format!("no HTTP client: {e}")))?;
    let transport = HttpTransporter::new(Gate { transport: ReqwestTransport::new(client), meter: Arc::clone(meter) });
    let context = base.base_context().with_http_transport(transport);
    let base = base.with_context(context);
    let raw = Operator::from_parts(base.base_context().clone(), base.base_service().clone());
    let masked = base.layer(CapabilityOverrideLayer::new(|mut can: Capability| {
        // Ignored by most S3 servers, which then replace the object by its tail; elsewhere bound to special objects.
        can.write_can_append = false;
        can
    }));

    let each_try = (request_timeout / 3).max(Duration::from_millis(500));
    let ask_once = masked.clone().layer(TimeoutLayer::new().with_timeout(each_try).with_io_timeout(each_try));
    let ask = ask_once.clone().layer(retries(cleaner, meter, 3));
    let write = masked.layer(TimeoutLayer::new().with_timeout(each_try).with_io_timeout(upload_timeout));
    let write = match backend.service.upload {
        Upload::Parts | Upload::OneShot => write.layer(retries(cleaner, meter, 2)),
        Upload::InPlace | Upload::Memory => write,
    };
    let raw = raw
        .layer(TimeoutLayer::new().with_timeout(each_try).with_io_timeout(each_try))
        .layer(retries(cleaner, meter, 3));
    Ok(Operators {
        ask,
        ask_once,
        write,
        raw,
        #[cfg(feature = "s3")]
        keys,
    })
}

fn retries(
    cleaner: &Arc<Cleaner>,
    meter: &Arc<StoreMeter>,
    times: usize,
) -> RetryLayer<impl Fn(RetryEvent<'_>) + Send + Sync + 'static> {
    let (cleaner, meter) = (Arc::clone(cleaner), Arc::clone(meter));
    RetryLayer::new()
        .with_jitter()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(5))
        .with_factor(3.0)
        .with_max_times(times)
        .with_notify(move |event: RetryEvent<'_>| {
            note_retry();
            let why = cleaner.clean_error(event.err);
            meter.retry(kind_of_retry(event.op), event.retry_after, &why);
        })
}

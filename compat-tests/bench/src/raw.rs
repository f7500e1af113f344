//! OpenDAL alone, with ovfs's transport: what the store and the client library can do at best.

use std::io;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use opendal::{HttpTransporter, Operator};
use opendal_http_transport_reqwest::ReqwestTransport;
use tokio::runtime::{Builder, Runtime};

use crate::process::S3;
use crate::rows::Failure;
use crate::work;

/// Requests side by side that are tried: the best counts.
pub const CONCURRENCIES: [usize; 3] = [8, 16, 32];
/// Bytes per ranged GET and per part.
const CHUNK: usize = 8 << 20;

/// An operator with threads of its own.
#[derive(Debug)]
pub struct Raw {
    runtime: Runtime,
    operator: Operator,
}

impl Raw {
    /// For a bucket.
    ///
    /// # Errors
    /// OpenDAL refuses the configuration, or the host the threads.
    pub fn new(s3: &S3) -> Result<Raw, Failure> {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let config = [
            ("bucket", &s3.bucket),
            ("endpoint", &s3.endpoint),
            ("region", &"us-east-1".to_owned()),
            ("access_key_id", &s3.access_key),
            ("secret_access_key", &s3.secret_key),
        ];
        let base = Operator::via_iter("s3", config.map(|(key, value)| (key.to_owned(), value.clone())))?;
        let client = reqwest::Client::builder().pool_max_idle_per_host(256).http1_only().build();
        let transport = HttpTransporter::new(ReqwestTransport::new(client.map_err(io::Error::other)?));
        let context = base.base_context().with_http_transport(transport);
        Ok(Raw { runtime, operator: base.with_context(context) })
    }

    /// Seconds to fetch the first `size` bytes of an object.
    ///
    /// # Errors
    /// OpenDAL's.
    pub fn read(&self, key: &str, size: u64, concurrency: usize) -> Result<Duration, Failure> {
        let began = Instant::now();
        let got: Result<u64, opendal::Error> = self.runtime.block_on(async {
            let reader = self.operator.reader_with(key).await?;
            let ranges = (0..size).step_by(CHUNK).map(|at| at..(at + CHUNK as u64).min(size));
            let reads = stream::iter(ranges).map(|range| {
                let reader = reader.clone();
                async move { reader.read(range).await.map(|buffer| buffer.len() as u64) }
            });
            reads.buffer_unordered(concurrency).try_fold(0, async |sum, len| Ok(sum + len)).await
        });
        match got? {
            len if len == size => Ok(began.elapsed()),
            len => Err(Failure::Wrong(format!("OpenDAL read {len} of {size} bytes"))),
        }
    }

    /// Random reads of 4 KiB a second, `depth` at a time, `count` in all.
    ///
    /// # Errors
    /// OpenDAL's.
    pub fn random(&self, key: &str, size: u64, depth: usize, count: usize, seed: u64) -> Result<f64, Failure> {
        let mut rng = ovfs_compat_tests::subject::Rng::new(seed);
        let offsets: Vec<u64> = (0..count).map(|_| rng.below(size / 4096) * 4096).collect();
        let began = Instant::now();
        let done: Result<(), opendal::Error> = self.runtime.block_on(async {
            let reads = stream::iter(offsets).map(|at| {
                let read = self.operator.read_with(key).range(at..at + 4096);
                async move { read.await.map(drop) }
            });
            reads.buffer_unordered(depth).try_collect().await
        });
        done?;
        Ok(count as f64 / began.elapsed().as_secs_f64())
    }

    /// Seconds to upload `size` bytes in parts.
    ///
    /// # Errors
    /// OpenDAL's.
    pub fn write(&self, key: &str, seed: u64, size: u64, concurrency: usize) -> Result<Duration, Failure> {
        let mut block = vec![0; CHUNK];
        work::fill(seed, 0, &mut block);
        let block = bytes::Bytes::from(block);
        let began = Instant::now();
        let done: Result<(), opendal::Error> = self.runtime.block_on(async {
            let mut writer = self.operator.writer_with(key).chunk(CHUNK).concurrent(concurrency).await?;
            let mut left = size;
            while left > 0 {
                let piece = left.min(CHUNK as u64);
                writer.write(block.slice(..piece as usize)).await?;
                left -= piece;
            }
            writer.close().await.map(drop)
        });
        done?;
        Ok(began.elapsed())
    }

    /// Seconds to put `count` objects of `size` bytes.
    ///
    /// # Errors
    /// OpenDAL's.
    pub fn write_many(&self, prefix: &str, size: usize, count: u64, concurrency: usize) -> Result<Duration, Failure> {
        let block = bytes::Bytes::from(vec![7u8; size]);
        let began = Instant::now();
        let done: Result<(), opendal::Error> = self.runtime.block_on(async {
            let writes = stream::iter(0..count).map(|n| {
                let (operator, block) = (self.operator.clone(), block.clone());
                let key = format!("{prefix}{n:08}");
                async move { operator.write(&key, block).await.map(drop) }
            });
            writes.buffer_unordered(concurrency).try_collect().await
        });
        done?;
        Ok(began.elapsed())
    }

    /// Seconds to list everything below `prefix`, and how many entries there are.
    ///
    /// # Errors
    /// OpenDAL's.
    pub fn list(&self, prefix: &str, recursive: bool) -> Result<(Duration, u64), Failure> {
        let began = Instant::now();
        let count: Result<u64, opendal::Error> = self.runtime.block_on(async {
            let lister = self.operator.lister_with(prefix).recursive(recursive).await?;
            lister.try_fold(0, async |count, _| Ok(count + 1)).await
        });
        Ok((began.elapsed(), count?))
    }

    /// Lists many directories side by side, each alone.
    ///
    /// # Errors
    /// OpenDAL's.
    pub fn list_each(&self, prefixes: &[String], concurrency: usize) -> Result<(Duration, u64), Failure> {
        let began = Instant::now();
        let count: Result<u64, opendal::Error> = self.runtime.block_on(async {
            let lists = stream::iter(prefixes).map(|prefix| async move {
                let lister = self.operator.lister(prefix).await?;
                lister.try_fold(0, async |count, _| Ok(count + 1)).await
            });
            lists.buffer_unordered(concurrency).try_fold(0, async |sum, count: u64| Ok(sum + count)).await
        });
        Ok((began.elapsed(), count?))
    }
}

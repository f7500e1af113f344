//! Data that ovfs has in its pool, beside data that the host has in its page cache.

use crate::lane::Until;
use crate::process::Spec;
use crate::record::{Row, Sample, Unit};
use crate::rows::{During, Failure, Settings, announce, beside_pool, turn, write_pattern};
use crate::s3::MemoryS3;
use crate::session::{Pair, Session, Shape, metered};
use crate::usage;
use crate::work::io::{OpenFile, Order, Reads};

const SIZE: u64 = 64 << 20;
const SEED: u64 = 3;
const MIB: u32 = 1 << 20;

fn connect(spec: &Spec, settings: &Settings) -> Result<(Pair, OpenFile), Failure> {
    let daemon = spec.start()?;
    let mut session =
        Session::open(&daemon.socket(), Shape { wait: settings.wait, ..Shape::default() }).during("INIT")?;
    let file = session.open_file("data", libc::O_RDONLY, SEED).during("OPEN")?;
    // Everything once, so that it is where it is to be read from.
    let mut work = Reads::new(file, MIB, Order::once(SIZE), 4);
    session.one(&mut work, 4, Until::Done).during("the first read")?;
    Ok((Pair { session, daemon }, file))
}

/// Every row.
///
/// # Errors
/// A daemon fails or answers with wrong data.
pub fn run(settings: &Settings, only: Option<&str>) -> Result<Vec<Row>, Failure> {
    let store = MemoryS3::start()?;
    store.put_pattern("data", SEED, SIZE);
    let share = settings.share()?;
    write_pattern(&share.path().join("data"), SEED, SIZE)?;
    let mut pairs = [
        connect(&Spec::virtiofsd(share.path()).called("virtiofsd, page cache"), settings)?,
        connect(&store.access().ovfs(), settings)?,
    ];
    let (mut rows, mut memory) = (Vec::new(), Vec::new());
    for (block, unit, what) in [(4096, Unit::Ops, "4 KiB random"), (MIB, Unit::Mib, "1 MiB sequential")] {
        for depth in [1, 32] {
            let name = format!("hot {what} read, depth {depth}");
            if only.is_some_and(|only| !name.contains(only)) {
                continue;
            }
            let mut row = Row::new(name, unit).compare("ovfs", &["virtiofsd, page cache"], Some(1.2));
            for round in 0..settings.rounds {
                for n in turn(round, pairs.len()) {
                    let (pair, file) = &mut pairs[n];
                    let pids = pair.daemon.pids();
                    let order = if block == MIB { Order::over_and_over(SIZE) } else { Order::random(round as u64 + 1) };
                    let mut work = Reads::new(*file, block, order, depth);
                    pair.session.one(&mut work, depth, Until::Elapsed(settings.window / 10)).during("hot read")?;
                    let requests = store.server.counters.now().total();
                    let run = metered(&pids, || {
                        pair.session.one(&mut work, depth, Until::Elapsed(settings.window)).during("hot read")
                    })?;
                    let mut sample = Sample::rate(&run, unit);
                    sample.store = vec![("GET".into(), store.server.counters.now().total() - requests)];
                    row.add(&pair.daemon.label.clone(), sample);
                    if pair.daemon.label == "ovfs" {
                        memory.push(usage::own_memory(&pids));
                    }
                }
            }
            announce(&row);
            rows.push(row);
        }
    }
    if only.is_none() {
        rows.push(beside_pool("memory of ovfs beside its cache pool after each of these measurements", &memory));
        rows.last().into_iter().for_each(announce);
    }
    Ok(rows)
}

//! What a mount keeps of its speed while the store of another one takes requests and answers none.

use std::time::{Duration, Instant};

use ovfs_compat_tests::fuse::op;
use ovfs_compat_tests::gate::Gate;
use ovfs_compat_tests::guest::{Call, Guest};

use crate::record::{Row, Sample, Unit};
use crate::rows::{During, Failure, Settings, announce, turn};
use crate::s3::MemoryS3;
use crate::session::{Pair, Session, Shape};

/// Requests to the other store that wait meanwhile.
const HUNG: u64 = 32;
/// Files and their sizes in bytes, of each round.
const LARGE: (usize, usize) = (12, 4 << 20);
const SMALL: (usize, usize) = (200, 4 << 10);
/// Distance of the store that is measured.
const LATENCY: Duration = Duration::from_millis(2);

const ALONE: &str = "no other store";
const WELL: &str = "the other is well";
const HOLED: &str = "the other is silent";

/// A share with the measured store in `/a`, perhaps with another one in `/b`.
struct Share {
    pair: Pair,
    label: &'static str,
    /// What hangs is asked of these.
    other: Vec<u64>,
}

fn share(
    a: &MemoryS3,
    b: Option<(&MemoryS3, u16)>,
    label: &'static str,
    settings: &Settings,
) -> Result<Share, Failure> {
    let access = a.access();
    let url = |access: &crate::process::S3, path: &str| format!("{path}={}", access.url());
    let mut spec = access.ovfs_at(&url(&access, "/a")).arg("--request-timeout=600");
    spec = match b {
        None => spec.arg("--cache-size=128M"),
        Some((b, port)) => {
            let other = crate::process::S3 { endpoint: format!("http://127.0.0.1:{port}"), ..b.access() };
            spec.arg("--cache-size=256M").arg("--backend").arg(url(&other, "/b"))
        }
    };
    let daemon = spec.called(label).start()?;
    let mut session =
        Session::open(&daemon.socket(), Shape { wait: settings.wait, ..Shape::default() }).during("INIT")?;
    let other = match b {
        None => Vec::new(),
        Some(_) => {
            let known = (0..HUNG).map(|n| session.guest.resolve(&format!("b/f{n}")));
            known.collect::<Result<_, _>>().during("LOOKUP in the other store")?
        }
    };
    Ok(Share { pair: Pair { session, daemon }, label, other })
}

/// Writes files and reads others that nobody has read yet; mebibytes or operations a second.
fn measure(guest: &mut Guest, a: &MemoryS3, tag: &str, (count, size): (usize, usize)) -> Result<f64, Failure> {
    for n in 0..count {
        a.put_pattern(&format!("{tag}-r{n}"), n as u64, size as u64);
    }
    let bytes = vec![7; size];
    let began = Instant::now();
    for n in 0..count {
        guest.write_file(&format!("a/{tag}-w{n}"), &bytes).during("write")?;
        if guest.read_file(&format!("a/{tag}-r{n}")).during("read")?.len() != size {
            return Err(Failure::Wrong(format!("{tag}-r{n} has another length")));
        }
    }
    let seconds = began.elapsed().as_secs_f64().max(1e-9);
    a.clear(tag);
    Ok(if size >= 1 << 20 {
        (2 * count * size) as f64 / f64::from(1 << 20) / seconds
    } else {
        2.0 * count as f64 / seconds
    })
}

/// Every row.
///
/// # Errors
/// A daemon fails or answers with wrong data.
pub fn run(settings: &Settings, only: Option<&str>) -> Result<Vec<Row>, Failure> {
    let (a, b) = (MemoryS3::start()?, MemoryS3::start()?);
    a.server.distance.set(LATENCY, 0);
    for n in 0..HUNG {
        b.put_pattern(&format!("f{n}"), n, 16);
    }
    let gate = Gate::before(b.server.address.port());
    let mut shares = [
        share(&a, None, ALONE, settings)?,
        share(&a, Some((&b, b.server.address.port())), WELL, settings)?,
        share(&a, Some((&b, gate.port())), HOLED, settings)?,
    ];
    let mut rows = Vec::new();
    let kinds = [
        ("files of 4 MiB beside another store", Unit::Mib, LARGE),
        ("files of 4 KiB beside another store", Unit::Ops, SMALL),
    ];
    for (kind, (name, unit, work)) in kinds.into_iter().enumerate() {
        if only.is_some_and(|only| !name.contains(only)) {
            continue;
        }
        let mut row = Row::new(name, unit).compare(HOLED, &[WELL], Some(0.95)).compare(HOLED, &[ALONE], Some(0.95));
        for round in 0..settings.rounds {
            for n in turn(round, shares.len()) {
                let Share { pair, label, other } = &mut shares[n];
                let holed = *label == HOLED;
                let guest = &mut pair.session.guest;
                let mut tickets = Vec::new();
                if holed {
                    gate.shut();
                    for &nodeid in other.iter() {
                        // Opening asks the store each time.
                        let call =
                            Call { opcode: op::OPEN, nodeid, args: vec![&[0; 8]], reply: Some(16), ..Call::default() };
                        tickets.push(guest.submit(&call).during("OPEN in the other store")?);
                    }
                }
                row.add(label, Sample::of(measure(guest, &a, &format!("k{kind}-{round}-{n}"), work)?));
                gate.open();
                for ticket in tickets {
                    guest.wait(ticket).during("OPEN in the other store, which answers again")?;
                }
            }
        }
        announce(&row);
        rows.push(row);
    }
    Ok(rows)
}

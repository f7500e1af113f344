//! How a composed object is put together: which ranges the store copies itself, which pass through us, and in which pieces.

use crate::store::{Segment, Slice};

/// Objects up to this length go up in one request.
pub(super) const SINGLE_MAX: u64 = 16 << 20;

/// Fewest bytes in a piece of a larger object.
const PART_MIN: u64 = 8 << 20;

/// S3 takes 10,000 parts. Half of them may be pieces that we send, and below a quarter ranges that the store copies, each of
/// which may have an odd piece before it.
const SENT_MAX: u64 = 5_000;
const COPIED_MAX: u64 = 2_250;

/// Longest object that the above holds for, with ranges of at most 5 GiB; also S3's limit for many years.
pub(super) const TOTAL_MAX: u64 = 5 << 40;

/// Longest range that the store is asked to copy in one request, of smaller objects; several run side by side.
const COPY_MAX: u64 = 256 << 20;

/// Shortest range that the store is asked to copy; shorter ones are read and sent like new data.
const COPY_MIN: u64 = 16 << 20;

/// Next thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Send these.
    Send(Vec<Piece>),
    /// Let the store copy this range of the base.
    Copy { base: u8, offset: u64, len: u64 },
}

/// Bytes that pass through us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Pool(Slice),
    Zero(u64),
    /// A range of the base, to be read.
    Fetch {
        base: u8,
        offset: u64,
        len: u64,
    },
}

/// Bytes in a piece of an object of `total` bytes.
pub(super) fn part_size(total: u64) -> u64 {
    if total <= SINGLE_MAX { total.max(1) } else { PART_MIN.max(total.div_ceil(SENT_MAX)) }
}

/// The steps for `segments`, of `total` bytes; `native`: the store copies ranges.
pub(super) fn plan(segments: &[Segment], total: u64, native: bool) -> Vec<Step> {
    let copy_min = COPY_MIN.max(total.div_ceil(COPIED_MAX));
    // Twice the shortest, so that no slice of a longer range falls below it.
    let copy_max = COPY_MAX.max(2 * copy_min);
    let mut steps = Vec::new();
    let mut pieces = Vec::new();
    for segment in segments {
        match *segment {
            Segment::Data(slice) => pieces.push(Piece::Pool(slice)),
            Segment::Zero { len } => pieces.push(Piece::Zero(len)),
            Segment::Copy { base, offset, len } if !native || len < copy_min || total <= SINGLE_MAX => {
                pieces.push(Piece::Fetch { base, offset, len });
            }
            Segment::Copy { base, offset, len } => {
                if !pieces.is_empty() {
                    steps.push(Step::Send(std::mem::take(&mut pieces)));
                }
                let slices = len.div_ceil(copy_max);
                let (each, odd) = (len / slices, len % slices);
                let mut at = offset;
                for n in 0..slices {
                    let len = each + u64::from(n < odd);
                    steps.push(Step::Copy { base, offset: at, len });
                    at += len;
                }
            }
        }
    }
    if !pieces.is_empty() {
        steps.push(Step::Send(pieces));
    }
    steps
}

/// Bytes that are read from the base and sent again.
pub(super) fn fetched(steps: &[Step]) -> u64 {
    let pieces = steps.iter().filter_map(|s| if let Step::Send(pieces) = s { Some(pieces) } else { None });
    pieces.flatten().map(|p| if let Piece::Fetch { len, .. } = p { *len } else { 0 }).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn segment() -> impl Strategy<Value = Segment> {
        prop_oneof![
            (0..1u64 << 40, 1..1u64 << 36).prop_map(|(offset, len)| Segment::Copy { base: 0, offset, len }),
            (0..1u64 << 30, 1..1u32 << 22).prop_map(|(offset, len)| Segment::Data(Slice { offset, len })),
            (1..1u64 << 30).prop_map(|len| Segment::Zero { len }),
        ]
    }

    fn len_of(segment: &Segment) -> u64 {
        match segment {
            Segment::Copy { len, .. } | Segment::Zero { len } => *len,
            Segment::Data(slice) => slice.len.into(),
        }
    }

    /// The plan as plain segments again, neighbouring ranges joined.
    fn flatten(steps: &[Step]) -> Vec<Segment> {
        let mut flat: Vec<Segment> = Vec::new();
        let mut push = |next: Segment| match (flat.last_mut(), &next) {
            (Some(Segment::Copy { base: 0, offset, len }), Segment::Copy { offset: at, len: more, .. })
                if *offset + *len == *at =>
            {
                *len += more;
            }
            _ => flat.push(next),
        };
        for step in steps {
            match step {
                Step::Copy { base, offset, len } => push(Segment::Copy { base: *base, offset: *offset, len: *len }),
                Step::Send(pieces) => pieces.iter().for_each(|piece| {
                    push(match *piece {
                        Piece::Pool(slice) => Segment::Data(slice),
                        Piece::Zero(len) => Segment::Zero { len },
                        Piece::Fetch { base, offset, len } => Segment::Copy { base, offset, len },
                    });
                }),
            }
        }
        flat
    }

    proptest! {
        #[test]
        fn a_plan_is_the_object_in_few_enough_parts(
            segments in proptest::collection::vec(segment(), 0..60),
            native: bool,
        ) {
            let total: u64 = segments.iter().map(len_of).sum();
            let steps = plan(&segments, total, native);
            let whole: Vec<Step> = segments.iter().map(|s| Step::Send(vec![match *s {
                Segment::Data(slice) => Piece::Pool(slice),
                Segment::Zero { len } => Piece::Zero(len),
                Segment::Copy { base, offset, len } => Piece::Fetch { base, offset, len },
            }])).collect();
            prop_assert_eq!(flatten(&steps), flatten(&whole));
            let part = part_size(total);
            let parts: u64 = steps.iter().map(|step| match step {
                Step::Copy { .. } => 1,
                Step::Send(pieces) => {
                    let bytes: u64 = pieces.iter().map(|p| match p {
                        Piece::Pool(s) => u64::from(s.len),
                        Piece::Zero(len) | Piece::Fetch { len, .. } => *len,
                    }).sum();
                    bytes / part + 1
                }
            }).sum();
            prop_assert!(parts <= 10_000, "{parts}");
            for step in &steps {
                if let Step::Copy { len, .. } = step {
                    prop_assert!(native && *len >= 5 << 20 && *len <= 5 << 30);
                }
            }
        }
    }

    #[test]
    fn alternating_writes_over_a_huge_object_stay_below_ten_thousand_parts() {
        let total: u64 = 5 << 40;
        let each = 512u64 << 20;
        let mut segments = Vec::new();
        for n in 0..total / each {
            segments.push(Segment::Copy { base: 0, offset: n * each, len: each - 1 });
            segments.push(Segment::Zero { len: 1 });
        }
        let steps = plan(&segments, total, true);
        assert!(steps.len() < 10_000, "{}", steps.len());
    }
}

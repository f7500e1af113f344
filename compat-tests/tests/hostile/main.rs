//! A guest that breaks the rules of names, of FUSE and of virtio rings.
//!
//! Every row runs on ovfs sharing a directory without a sandbox (where a bad name would do most harm), on ovfs in its
//! default sandbox with a thread pool, on ovfs over a store, and on virtiofsd 1.14.0, whose measured behaviour must
//! show, so that it is known that the probe bites.

mod messages;
mod names;
mod rings;

use ovfs_compat_tests::daemon::{ovfs_bin, virtiofsd_bin};
use ovfs_compat_tests::fuse::{Body, ROOT, op};
use ovfs_compat_tests::hostile::{Session, Target};

macro_rules! rows {
    ($($group:ident: $($name:ident)*;)*) => {
        mod passthrough {
            $($(#[test] fn $name() {
                super::$group::$name(&super::Target::passthrough(super::ovfs_bin(), &["--sandbox", "none"]));
            })*)*
        }
        mod confined_with_pool {
            $($(#[test] fn $name() {
                super::$group::$name(&super::Target::passthrough(super::ovfs_bin(), &["--thread-pool-size", "4"]));
            })*)*
        }
        mod store {
            $($(#[test] fn $name() { super::$group::$name(&super::Target::backend(super::ovfs_bin(), "memory://")); })*)*
        }
        mod virtiofsd {
            $($(#[test] fn $name() { super::$group::$name(&super::Target::virtiofsd(super::virtiofsd_bin())); })*)*
        }
    };
}

rows! {
    names:
        n1_dot_names
        n2_paths_as_names
        n3_empty_name
        n4_names_without_end
        n5_long_names
        n6_names_that_are_not_utf8
        n7_make_outside
        n8_unlink_outside
        n9_symlink_outside
        n10_bad_names_in_every_operation;
    messages:
        f1_before_init
        f2_init_twice
        f3_init_values
        f4_init_truncated
        f5_header_lengths
        f6_header_length_4g
        f7_unknown_opcodes
        f8_forged_nodes
        f9_forged_handles
        f10_forget_the_root
        f11_forget_too_much
        f12_readdir_extremes
        f13_read_4g
        f14_read_beyond_2_63
        f15_write_more_than_sent
        f16_write_at_the_end
        f17_no_room_for_a_reply
        f18_truncated_arguments
        x1_setxattr_longer_than_sent
        x2_getxattr_4g
        x3_listxattr_4g
        l1_descriptor_limit
        s1_special_files;
    rings:
        r1_descriptors_outside_memory
        r2_chain_without_end
        r3_indices_beyond_the_ring
        r4_empty_chain
        r5_nested_indirect
        r6_indirect_table_of_odd_length
        r7_indirect_table_of_4g
        r8_indirect_table_outside_memory
        r9_one_head_many_times
        r10_available_index_jumps
        r11_spurious_kicks
        r12_overlapping_giants
        r13_exchanged_directions
        r14_request_changes_under_way;
}

pub(crate) const EXIT: &[&str] = &["exit 1"];
pub(crate) const INVALID: &[&str] = &["EINVAL"];
/// What a chain may end in that cannot be trusted to hold a reply, or can only partly.
pub(crate) const REFUSED: &[&str] = &["used 0", "EINVAL", "EIO"];

pub(crate) fn lookup(s: &mut Session, name: &[u8]) -> String {
    s.request(op::LOOKUP, ROOT, &Body::new().name(name).0, 128)
}

//! Random operations on the file system and on a model of what POSIX says of them, compared after each.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Create(usize),
    Open(usize),
    Write(usize, u64, usize, u8),
    Truncate(usize, u64),
    Read(usize, u64, usize),
    Close(usize),
    Rename(usize, usize),
    Unlink(usize),
    Fail,
    Flush(usize),
    RenameDir,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0usize..5).prop_map(Step::Create),
        2 => (0usize..5).prop_map(Step::Open),
        8 => (0usize..8, 0u64..40_000, 1usize..12_000, any::<u8>()).prop_map(|(h, o, l, b)| Step::Write(h, o, l, b)),
        2 => (0usize..8, 0u64..40_000).prop_map(|(h, s)| Step::Truncate(h, s)),
        6 => (0usize..8, 0u64..50_000, 1usize..20_000).prop_map(|(h, o, l)| Step::Read(h, o, l)),
        3 => (0usize..8).prop_map(Step::Close),
        2 => (0usize..5, 0usize..5).prop_map(|(a, b)| Step::Rename(a, b)),
        2 => (0usize..5).prop_map(Step::Unlink),
        1 => Just(Step::Fail),
        2 => (0usize..8).prop_map(Step::Flush),
        1 => Just(Step::RenameDir),
    ]
}

/// Files as POSIX has them: names point to bytes, handles hold them.
#[derive(Default)]
struct Posix {
    names: BTreeMap<usize, usize>,
    files: Vec<Vec<u8>>,
    handles: Vec<((NodeId, Handle), usize)>,
    dir: bool,
}

/// Runs `steps` on the file system and on the model and compares after each.
fn run(steps: Vec<Step>) -> std::result::Result<(), TestCaseError> {
    let fs = Fs::with_pool(4 << 20);
    fs.mkdir("x").expect("mkdir");
    let mut model = Posix::default();
    let path = |model: &Posix, name: usize| format!("{}/n{name}", if model.dir { "y" } else { "x" });
    for step in steps {
        let pick = |model: &Posix, h: usize| (!model.handles.is_empty()).then(|| h % model.handles.len());
        match step {
            Step::Create(name) => {
                let handle = fs.create(&path(&model, name), 0).expect("create");
                let id = *model.names.entry(name).or_insert_with(|| {
                    model.files.push(Vec::new());
                    model.files.len() - 1
                });
                model.handles.push((handle, id));
            }
            Step::Open(name) => {
                let opened = fs.open(&path(&model, name), RDWR);
                prop_assert_eq!(opened.is_ok(), model.names.contains_key(&name));
                if let Ok(handle) = opened {
                    let id = model.names[&name];
                    model.handles.push((handle, id));
                }
            }
            Step::Write(h, offset, len, byte) => {
                let Some(h) = pick(&model, h) else { continue };
                let (handle, id) = model.handles[h];
                let data: Vec<u8> = (0..len).map(|i| byte.wrapping_add((i / 16) as u8)).collect();
                prop_assert_eq!(fs.write_at(handle, offset, &data), Ok(len));
                let file = &mut model.files[id];
                let end = offset as usize + len;
                if file.len() < end {
                    file.resize(end, 0);
                }
                file[offset as usize..end].copy_from_slice(&data);
            }
            Step::Truncate(h, size) => {
                let Some(h) = pick(&model, h) else { continue };
                let (handle, id) = model.handles[h];
                prop_assert_eq!(fs.truncate(handle.0, Some(handle.1), size), Ok(()));
                model.files[id].resize(size as usize, 0);
            }
            Step::Read(h, offset, len) => {
                let Some(h) = pick(&model, h) else { continue };
                let (handle, id) = model.handles[h];
                let file = &model.files[id];
                let start = (offset as usize).min(file.len());
                let expect = &file[start..(start + len).min(file.len())];
                let got = fs.read_at(handle, offset, len as u32).expect("read");
                prop_assert!(got == expect, "read of {} at {offset}", expect.len());
            }
            Step::Close(h) => {
                let Some(h) = pick(&model, h) else { continue };
                let (handle, _) = model.handles.swap_remove(h);
                fs.bucket().fail.clear();
                prop_assert_eq!(fs.close(handle), Ok(()));
            }
            Step::Flush(h) => {
                let Some(h) = pick(&model, h) else { continue };
                let result = fs.flush(model.handles[h].0);
                prop_assert!(matches!(result, Ok(()) | Err(Errno::EIO)));
            }
            Step::Rename(from, to) => {
                let result = fs.rename(&path(&model, from), &path(&model, to), 0);
                prop_assert_eq!(result.is_ok(), model.names.contains_key(&from), "{:?}", result);
                if let Some(id) = model.names.remove(&from) {
                    model.names.insert(to, id);
                }
            }
            Step::Unlink(name) => {
                let result = fs.unlink(&path(&model, name));
                prop_assert_eq!(result.is_ok(), model.names.remove(&name).is_some(), "{:?}", result);
            }
            Step::Fail => fs.bucket().fail.push(("compose", StoreErrorKind::Io)),
            Step::RenameDir => {
                let (from, to) = if model.dir { ("y", "x") } else { ("x", "y") };
                prop_assert_eq!(fs.rename(from, to, 0), Ok(()));
                model.dir = !model.dir;
            }
        }
        let names: Vec<String> = model.names.keys().map(|name| format!("n{name}")).collect();
        prop_assert_eq!(fs.list(if model.dir { "y" } else { "x" }, true, 4), names);
    }
    fs.bucket().fail.clear();
    for (handle, _) in std::mem::take(&mut model.handles) {
        prop_assert_eq!(fs.close(handle), Ok(()));
    }
    for (&name, &id) in &model.names {
        let object = fs.object(&path(&model, name));
        prop_assert!(object.as_ref() == Some(&model.files[id]), "object n{name}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn guests_see_posix_whatever_they_do(steps in prop::collection::vec(step(), 1..120)) {
        run(steps)?;
    }
}

#[test]
fn regression_a_dirty_file_is_read_after_its_directory_moved() {
    use Step::{Close, Create, Read, RenameDir, Write};
    run(vec![Create(2), Write(0, 33176, 3429, 0), Close(0), Create(2), Write(0, 0, 1, 0), RenameDir, Read(0, 0, 2)])
        .expect("as POSIX");
}

#[test]
fn regression_a_name_taken_by_an_unfinished_file_is_removed_with_it() {
    use Step::{Close, Create, Rename, Unlink};
    run(vec![Create(3), Close(0), Create(0), Rename(0, 3), Unlink(3)]).expect("as POSIX");
}

#[test]
fn regression_an_unlinked_file_keeps_no_bytes_that_truncation_cut_off() {
    use Step::{Close, Create, Read, Truncate, Unlink, Write};
    run(vec![
        Create(3),
        Write(0, 24896, 2284, 0),
        Close(0),
        Create(3),
        Truncate(0, 1),
        Write(0, 27180, 1, 0),
        Unlink(3),
        Read(0, 22819, 2094),
    ])
    .expect("as POSIX");
}

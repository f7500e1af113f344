use super::*;

#[test]
fn memory_keeps_the_contract() {
    let bed = Bed::new("memory://");
    let can = block_on(bed.remote.probe()).unwrap();
    assert_eq!((can.scheme.as_str(), can.write, can.etag, can.real_dirs), ("memory", true, true, false));
    contract(&bed, Corners::default());
    reserved_names(&bed);
    many(&bed, 5000);
    assert_eq!(bed.finish(7), 7, "the exit code is the device process's");
}

#[test]
fn a_directory_hides_a_file_of_its_name() {
    let bed = Bed::new("memory:///deep/root");
    bed.put("fd", b"hidden");
    assert_eq!(bed.kind("fd"), Ok(Kind::File));
    bed.put("fd/child", b"x");
    assert_eq!(bed.kind("fd"), Ok(Kind::Dir));
    assert_ne!(bed.stat("fd").unwrap().marker, Some(true));
    assert_eq!(bed.list("").unwrap(), [("fd".to_owned(), Kind::Dir)]);
}

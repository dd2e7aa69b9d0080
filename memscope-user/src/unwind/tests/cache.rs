//! Tables on disk.

use std::{
    fs::{self, File, Permissions},
    io::{Seek as _, Write as _},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{super::tables::MIN_CACHED_BYTES, *};

const DIGEST: [u8; 32] = [7; 32];

fn open(parent: &Path) -> Result<TableCache, CacheError> {
    TableCache::open_below(parent, 1 << 20)
}

fn files(parent: &Path) -> Vec<PathBuf> {
    let directory = fs::read_dir(parent.join("memscope/unwind")).unwrap();
    directory.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_table_comes_back() {
    let place = tempfile::tempdir().unwrap();
    let cache = open(place.path()).unwrap();
    let table = read(&rich());
    assert!(cache.load(&DIGEST).unwrap().is_none());
    cache.store(&DIGEST, &table).unwrap();
    assert_eq!(cache.load(&DIGEST).unwrap(), Some(table.clone()));
    assert!(cache.load(&[8; 32]).unwrap().is_none());
    cache.store(&DIGEST, &table).unwrap();
    assert_eq!(files(place.path()).len(), 1, "nothing unfinished is left");
    let mode = fs::metadata(&files(place.path())[0]).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_damaged_file_is_an_error_wherever_the_damage_is() {
    let place = tempfile::tempdir().unwrap();
    let cache = open(place.path()).unwrap();
    cache.store(&DIGEST, &read(&rich())).unwrap();
    let path = files(place.path()).remove(0);
    let whole = fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        fs::write(&path, damaged).unwrap();
        assert!(cache.load(&DIGEST).is_err(), "byte {at} is changed");
        fs::write(&path, &whole[..at]).unwrap();
        assert!(cache.load(&DIGEST).is_err(), "only {at} bytes are left");
    }
    // With a checksum that is right.
    let good = read(&rich());
    let damages: [fn(&mut UnwindTable); 7] = [
        |table| table.base_svma += 1,
        |table| table.rules[0].cfa = CFA_SP,
        |table| table.rules[3].cfa = 99,
        |table| table.rules[3].rbx = 3,
        |table| table.rules.push(table.rules[3]),
        |table| table.rows[1].rule = 1000,
        |table| table.rows[1].offset = table.rows[0].offset,
    ];
    for (number, damage) in damages.into_iter().enumerate() {
        let mut table = good.clone();
        damage(&mut table);
        cache.store(&DIGEST, &table).unwrap();
        assert!(cache.load(&DIGEST).is_err(), "damage {number}");
    }
}

#[test]
fn a_place_that_others_can_change_is_refused() {
    let place = tempfile::tempdir().unwrap();
    open(place.path()).unwrap();
    let inner = place.path().join("memscope/unwind");
    for mode in [0o770, 0o702] {
        fs::set_permissions(&inner, Permissions::from_mode(mode)).unwrap();
        let error = open(place.path()).unwrap_err();
        assert!(matches!(&error, CacheError::NotPrivate { path } if *path == inner), "{error}");
    }
    fs::remove_dir(&inner).unwrap();
    let elsewhere = place.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    symlink(&elsewhere, &inner).unwrap();
    let error = open(place.path()).unwrap_err();
    assert!(matches!(error, CacheError::Open { .. }), "{error}");
    assert!(open(&place.path().join("absent")).is_err());
    if rustix::process::geteuid().is_root() {
        fs::remove_file(&inner).unwrap();
        fs::create_dir(&inner).unwrap();
        std::os::unix::fs::chown(&inner, Some(12345), None).unwrap();
        assert!(matches!(open(place.path()).unwrap_err(), CacheError::NotPrivate { .. }));
    }
}

#[test]
fn a_link_in_the_place_of_a_file_is_not_followed() {
    let place = tempfile::tempdir().unwrap();
    let cache = open(place.path()).unwrap();
    cache.store(&DIGEST, &read(&rich())).unwrap();
    let path = files(place.path()).remove(0);
    let victim = place.path().join("victim");
    fs::rename(&path, &victim).unwrap();
    symlink(&victim, &path).unwrap();
    assert!(cache.load(&DIGEST).is_err());
    let before = fs::read(&victim).unwrap();
    cache.store(&DIGEST, &read(&eh_frame(&[]))).unwrap();
    assert_eq!(fs::read(&victim).unwrap(), before, "the link is replaced, not written through");
    assert!(cache.load(&DIGEST).unwrap().is_some());
    // A directory there makes it fail, not hang or loop.
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(cache.load(&DIGEST).is_err());
    assert!(cache.store(&DIGEST, &read(&rich())).is_err());
}

#[test]
fn what_was_not_used_for_longest_makes_room() {
    let place = tempfile::tempdir().unwrap();
    let table = read(&rich());
    let one = {
        open(place.path()).unwrap().store(&[0; 32], &table).unwrap();
        fs::metadata(&files(place.path())[0]).unwrap().len()
    };
    let cache = TableCache::open_below(place.path(), 3 * one).unwrap();
    let age = |digest: u8, seconds| {
        let name = format!("{digest:02x}").repeat(32) + ".table";
        let file =
            File::options().write(true).open(place.path().join("memscope/unwind").join(name));
        let time = std::time::SystemTime::now() - std::time::Duration::from_secs(seconds);
        file.unwrap().set_modified(time).unwrap();
    };
    for digest in 1..=2 {
        cache.store(&[digest; 32], &table).unwrap();
    }
    for digest in 0..=2 {
        age(digest, 100 - u64::from(digest));
    }
    // The oldest is used, so the next to it goes.
    assert!(cache.load(&[0; 32]).unwrap().is_some());
    cache.store(&[3; 32], &table).unwrap();
    let there = |digest| cache.load(&[digest; 32]).unwrap().is_some();
    assert_eq!([0, 1, 2, 3].map(there), [true, false, true, true]);
}

fn large() -> Image {
    let function = |number: u64| (0x1000 + 16 * number, 16, vec![(4, Cfi::CfaOffset(16))]);
    let functions: Vec<_> = (0..40_000).map(function).collect();
    Image { code: 0x1000..0x10_0000, ..eh_frame(&functions) }
}

fn file_of(image: &Image) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&image.bytes()).unwrap();
    file
}

#[test]
fn only_tables_of_large_files_are_kept() {
    assert!(large().eh_frame.len() >= MIN_CACHED_BYTES);
    let place = tempfile::tempdir().unwrap();
    let (large, small) = (file_of(&large()), file_of(&rich()));
    let load = || {
        let tables = Tables::new(Some(open(place.path()).unwrap()));
        let loaded: Vec<_> =
            tables.load_all(&[&large, &small]).into_iter().map(Result::unwrap).collect();
        tables.keep_new();
        (tables.counts(), loaded)
    };
    let counts =
        |made, cached, cache_failures| TableCounts { made, cached, shared: 0, cache_failures };
    let (first, made) = load();
    assert_eq!(first, counts(2, 0, 0));
    let (second, cached) = load();
    assert_eq!(second, counts(1, 1, 0));
    assert_eq!(made, cached);
    assert_eq!(files(place.path()).len(), 1);

    let path = files(place.path()).remove(0);
    fs::write(&path, b"damaged").unwrap();
    assert_eq!(load().0, counts(2, 0, 1));
    assert_eq!(load().0, counts(1, 1, 0), "it was replaced");
}

#[test]
fn tables_are_kept_when_nobody_waits_for_them() {
    let place = tempfile::tempdir().unwrap();
    let tables = Tables::new(Some(open(place.path()).unwrap()));
    let table = tables.load(&file_of(&large())).unwrap();
    assert!(files(place.path()).is_empty(), "not yet");
    drop(table);
    tables.keep_new();
    let written = fs::metadata(&files(place.path())[0]).unwrap().modified().unwrap();
    tables.keep_new();
    let again = fs::metadata(&files(place.path())[0]).unwrap().modified().unwrap();
    assert_eq!(again, written, "once");
}

#[test]
fn files_with_the_same_contents_share_a_table() {
    let tables = Tables::new(None);
    let (one, other) = (file_of(&rich()), file_of(&rich()));
    let first = tables.load(&one).unwrap();
    assert!(Arc::ptr_eq(&first, &tables.load(&other).unwrap()));
    let image = Image { entry: 0, ..rich() };
    assert!(!Arc::ptr_eq(&first, &tables.load_image(&image.bytes()).unwrap()));
    assert_eq!(tables.counts(), TableCounts { made: 2, shared: 1, ..TableCounts::default() });
    drop(first);
    tables.load(&one).unwrap();
    assert_eq!(tables.counts().made, 3, "it was not in use any more");
}

#[test]
fn what_was_made_ahead_is_there_unless_the_file_has_changed() {
    let tables = Tables::new(None);
    let (kept, mut changed, forgotten) =
        (file_of(&rich()), file_of(&eh_frame(&[])), file_of(&large()));
    let nothing = tempfile::tempfile().unwrap();
    tables.load_ahead(&[&kept, &changed, &nothing, &forgotten]);
    assert_eq!(tables.counts().made, 3);
    let said = vec![(0, Cfi::CfaOffset(16))];
    let longer = eh_frame(&[(0x1100, 0x10, said)]).bytes();
    changed.set_len(0).unwrap();
    changed.rewind().unwrap();
    changed.write_all(&longer).unwrap();
    assert_eq!(tables.load(&changed).unwrap().rule_at(0x1100), sp(16));
    assert_eq!(tables.counts().made, 4);
    tables.load(&kept).unwrap();
    assert_eq!(tables.counts(), TableCounts { made: 4, ..TableCounts::default() });
    assert!(matches!(tables.load(&nothing), Err(UnwindError::NotElf(_))));
    tables.forget_ahead();
    tables.load(&forgotten).unwrap();
    assert_eq!(tables.counts().made, 5, "it was given up");
}

#[test]
fn tables_come_in_the_order_of_their_files() {
    let files: Vec<File> = (0..40_i32)
        .map(|number| {
            let said = vec![(0, Cfi::CfaOffset(16 + 8 * number))];
            file_of(&eh_frame(&[(0x1100, 0x10, said)]))
        })
        .collect();
    let nothing = tempfile::tempfile().unwrap();
    let mut asked: Vec<&File> = files.iter().collect();
    asked.insert(20, &nothing);
    let mut tables = Tables::new(None).load_all(&asked);
    assert!(matches!(tables.remove(20), Err(UnwindError::NotElf(_))));
    for (table, number) in tables.into_iter().zip(0..) {
        assert_eq!(table.unwrap().rule_at(0x1100), sp(16 + 8 * number));
    }
    let pipe = File::open("/dev/null").unwrap();
    assert!(matches!(Tables::default().load(&pipe), Err(UnwindError::Read(_))));
}

use super::*;

struct Ground {
    dir: tempfile::TempDir,
}

impl Ground {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn places(&self) -> Places {
        Places {
            path: self.path("kraken.age"),
            identity: self.path("config/identity.txt"),
            seen: Some(self.path("seen")),
            recipients: Vec::new(),
            lock_timeout: Duration::from_secs(20),
            makes_folder: false,
        }
    }

    fn store(&self) -> FileStore {
        FileStore::new("kraken", self.places())
    }

    fn seen_file(&self) -> PathBuf {
        fs::read_dir(self.path("seen")).unwrap().next().unwrap().unwrap().path()
    }
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn told(error: &StoreError) -> String {
    format!("{error}; hint: {}", error.hint().unwrap_or("none"))
}

async fn wrong(store: &FileStore) -> String {
    let read = told(&store.get(&name("a")).await.unwrap_err());
    let written = told(&store.put(&name("a"), &Secret::new("other")).await.unwrap_err());
    assert_eq!(read, written);
    read
}

#[tokio::test]
async fn a_store_is_made_with_the_first_value_and_is_closed_to_others() {
    let ground = Ground::new();
    let store = ground.store();
    assert_eq!(store.get(&name("a")).await.unwrap(), None);
    assert_eq!(store.list("").await.unwrap(), []);
    store.delete(&name("a")).await.unwrap();
    assert!(!ground.path("kraken.age").exists() && !ground.path("config").exists(), "looking makes nothing");

    assert_eq!(store.create(&name("a"), &Secret::new("first ü\n")).await.unwrap(), Created::New);
    assert_eq!(store.create(&name("a"), &Secret::new("second")).await.unwrap(), Created::Exists);
    let other = ground.store();
    assert_eq!(other.get(&name("a")).await.unwrap().unwrap().expose(), "first ü\n");
    for file in ["kraken.age", "kraken.age.lock", "config/identity.txt"] {
        assert_eq!(fs::metadata(ground.path(file)).unwrap().permissions().mode() & 0o777, 0o600, "{file}");
    }
    let text = fs::read_to_string(ground.path("kraken.age")).unwrap();
    assert!(text.starts_with("-----BEGIN AGE ENCRYPTED FILE-----") && !text.contains("first"));
    store.probe().await.unwrap();
    assert_eq!(store.list("").await.unwrap(), [name("a")]);
}

#[tokio::test]
async fn an_unchanged_value_writes_nothing() {
    let ground = Ground::new();
    let store = ground.store();
    store.put(&name("a"), &Secret::new("x")).await.unwrap();
    let before = fs::read(ground.path("kraken.age")).unwrap();
    store.put(&name("a"), &Secret::new("x")).await.unwrap();
    store.delete(&name("b")).await.unwrap();
    assert_eq!(fs::read(ground.path("kraken.age")).unwrap(), before);
}

#[tokio::test]
async fn what_cannot_be_read_is_told_and_never_overwritten() {
    let ground = Ground::new();
    let store = ground.store();
    store.put(&name("a"), &Secret::new("hunter2hunter2")).await.unwrap();
    let good = fs::read(ground.path("kraken.age")).unwrap();
    let mut flipped = good.clone();
    let at = good.len() - 60;
    flipped[at] = if good[at] == b'A' { b'B' } else { b'A' };
    for (bytes, said) in [
        (&b""[..], "cannot be decrypted"),
        (&b"rubbish"[..], "cannot be decrypted"),
        (&good[..good.len() / 2], "cannot be decrypted"),
        (&flipped[..], "cannot be decrypted"),
    ] {
        fs::write(ground.path("kraken.age"), bytes).unwrap();
        let wrong = wrong(&store).await;
        assert!(wrong.contains(said) && wrong.contains("nothing was changed"), "{wrong}");
        assert_eq!(fs::read(ground.path("kraken.age")).unwrap(), bytes);
    }
    fs::write(ground.path("kraken.age"), &good).unwrap();
    fs::set_permissions(ground.path("kraken.age"), fs::Permissions::from_mode(0o640)).unwrap();
    let said = wrong(&store).await;
    assert!(said.contains("0640") && said.contains("chmod 600"), "{said}");
    fs::set_permissions(ground.path("kraken.age"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(ground.path("config/identity.txt"), fs::Permissions::from_mode(0o644)).unwrap();
    let said = wrong(&store).await;
    assert!(said.contains("identity.txt has the mode 0644"), "{said}");
    fs::set_permissions(ground.path("config/identity.txt"), fs::Permissions::from_mode(0o600)).unwrap();
    assert!(store.get(&name("a")).await.unwrap().is_some());
}

#[tokio::test]
async fn another_key_another_cluster_and_no_key_are_told() {
    let ground = Ground::new();
    let store = ground.store();
    store.put(&name("a"), &Secret::new("x")).await.unwrap();
    let foreign = FileStore::new("other", ground.places());
    let said = wrong(&foreign).await;
    assert!(said.contains("belongs to the cluster 'kraken', not to 'other'"), "{said}");

    let key = fs::read(ground.path("config/identity.txt")).unwrap();
    fs::remove_file(ground.path("config/identity.txt")).unwrap();
    let said = wrong(&store).await;
    assert!(said.contains("the key") && said.contains("is not there"), "{said}");
    assert!(!ground.path("config/identity.txt").exists(), "no new key beside an old store");

    for (text, expected) in [
        (identity::generate().to_vec(), "encrypted to another key"),
        (b"# nothing\n".to_vec(), "has no age identity in it"),
        (b"AGE-SECRET-KEY-1X\n".to_vec(), "no age identity on its line 1"),
        (b"age-encryption.org/v1\n".to_vec(), "is encrypted itself"),
    ] {
        fs::write(ground.path("config/identity.txt"), text).unwrap();
        fs::set_permissions(ground.path("config/identity.txt"), fs::Permissions::from_mode(0o600)).unwrap();
        let said = wrong(&store).await;
        assert!(said.contains(expected) && !said.contains("KEY-1X"), "{said}");
    }
    // Keys may be added: any of them opens it.
    let both = [&identity::generate()[..], &key].concat();
    fs::write(ground.path("config/identity.txt"), both).unwrap();
    assert!(store.get(&name("a")).await.unwrap().is_some());
}

#[tokio::test]
async fn a_further_recipient_opens_it_too() {
    let ground = Ground::new();
    let second = identity::generate();
    let text = String::from_utf8(second.to_vec()).unwrap();
    let public = text.lines().find_map(|l| l.strip_prefix("# public key: ")).unwrap().to_owned();
    let store = FileStore::new("kraken", Places { recipients: vec![public], ..ground.places() });
    store.put(&name("a"), &Secret::new("x")).await.unwrap();
    fs::write(ground.path("second.txt"), &*second).unwrap();
    fs::set_permissions(ground.path("second.txt"), fs::Permissions::from_mode(0o600)).unwrap();
    let other = FileStore::new("kraken", Places { identity: ground.path("second.txt"), ..ground.places() });
    assert_eq!(other.get(&name("a")).await.unwrap().unwrap().expose(), "x");
    // The first key lost: with the second one the store is encrypted anew, and then to it alone.
    other.probe().await.unwrap();
    let said = wrong(&store).await;
    assert!(said.contains("encrypted to another key"), "{said}");
    assert_eq!(other.get(&name("a")).await.unwrap().unwrap().expose(), "x");
    let bad = FileStore::new(
        "kraken",
        Places { identity: ground.path("second.txt"), recipients: vec!["age1nonsense".into()], ..ground.places() },
    );
    let said = told(&bad.put(&name("a"), &Secret::new("y")).await.unwrap_err());
    assert!(said.contains("the recipient 'age1nonsense' is none"), "{said}");
}

#[tokio::test]
async fn an_old_copy_another_store_and_a_lost_one_are_noticed() {
    let ground = Ground::new();
    let store = ground.store();
    store.put(&name("a"), &Secret::new("1")).await.unwrap();
    let old = fs::read(ground.path("kraken.age")).unwrap();
    store.put(&name("a"), &Secret::new("2")).await.unwrap();
    let new = fs::read(ground.path("kraken.age")).unwrap();

    fs::write(ground.path("kraken.age"), &old).unwrap();
    let said = wrong(&store).await;
    assert!(said.contains("an old copy: its change number is 1, and 2 was seen here already"), "{said}");
    assert_eq!(fs::read(ground.path("kraken.age")).unwrap(), old);

    fs::remove_file(ground.path("kraken.age")).unwrap();
    let said = wrong(&store).await;
    assert!(said.contains("it is gone") && said.contains(&ground.seen_file().display().to_string()), "{said}");

    fs::write(ground.path("kraken.age"), &new).unwrap();
    fs::set_permissions(ground.path("kraken.age"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(store.get(&name("a")).await.unwrap().unwrap().expose(), "2");

    // What the message says to remove is what must be removed to go on with an old copy.
    fs::write(ground.path("kraken.age"), &old).unwrap();
    fs::remove_file(ground.seen_file()).unwrap();
    assert_eq!(store.get(&name("a")).await.unwrap().unwrap().expose(), "1");

    let elsewhere = FileStore::new("kraken", Places { seen: None, path: ground.path("b.age"), ..ground.places() });
    elsewhere.put(&name("a"), &Secret::new("9")).await.unwrap();
    fs::rename(ground.path("b.age"), ground.path("kraken.age")).unwrap();
    let said = wrong(&store).await;
    assert!(said.contains("another store than the one"), "{said}");
}

#[tokio::test]
async fn a_folder_that_was_named_must_be_there() {
    let ground = Ground::new();
    let places = Places { path: ground.path("disk/kraken.age"), ..ground.places() };
    let said = wrong(&FileStore::new("kraken", places.clone())).await;
    assert!(said.contains("its folder") && said.contains("mkdir -m 700"), "{said}");
    let own = FileStore::new("kraken", Places { makes_folder: true, ..places });
    assert_eq!(own.get(&name("a")).await.unwrap(), None);
    own.put(&name("a"), &Secret::new("x")).await.unwrap();
    assert_eq!(fs::metadata(ground.path("disk")).unwrap().permissions().mode() & 0o777, 0o700);
}

#[tokio::test]
async fn who_waits_too_long_hears_for_whom() {
    let ground = Ground::new();
    let store = FileStore::new("kraken", Places { lock_timeout: Duration::from_millis(100), ..ground.places() });
    store.put(&name("a"), &Secret::new("x")).await.unwrap();
    let held = store.file.lock(&ground.path("kraken.age")).unwrap();
    let error = store.put(&name("a"), &Secret::new("y")).await.unwrap_err();
    assert!(error.is_passing());
    let said = told(&error);
    assert!(said.contains(&format!("process {} since", std::process::id())), "{said}");
    assert_eq!(store.get(&name("a")).await.unwrap().unwrap().expose(), "x", "readers need no lock");
    drop(held);
    store.put(&name("a"), &Secret::new("y")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_fifty_that_race_one_makes_the_value() {
    let ground = Ground::new();
    let stores: Vec<Arc<FileStore>> = (0..5).map(|_| Arc::new(ground.store())).collect();
    let racers: Vec<_> = (0..50)
        .map(|n: usize| {
            let store = Arc::clone(&stores[n % stores.len()]);
            tokio::spawn(async move {
                let made = store.create(&name("a"), &Secret::new(format!("value {n}"))).await.unwrap();
                (made, store.get(&name("a")).await.unwrap().unwrap().expose().to_owned())
            })
        })
        .collect();
    let mut new = 0;
    let mut values = std::collections::BTreeSet::new();
    for racer in racers {
        let (made, value) = racer.await.unwrap();
        new += usize::from(made == Created::New);
        values.insert(value);
    }
    assert_eq!((new, values.len()), (1, 1));
}

#[tokio::test]
async fn leftovers_of_a_killed_writer_go_and_links_stay() {
    let ground = Ground::new();
    fs::create_dir(ground.path("real")).unwrap();
    std::os::unix::fs::symlink("real/store", ground.path("kraken.age")).unwrap();
    let store = ground.store();
    let said = told(&store.put(&name("a"), &Secret::new("x")).await.unwrap_err());
    assert!(said.contains("follow the link"), "{said}");
    let direct = FileStore::new("kraken", Places { path: ground.path("real/store"), ..ground.places() });
    direct.put(&name("a"), &Secret::new("x")).await.unwrap();
    fs::write(ground.path("real/.store-abc.tmp"), "half").unwrap();
    fs::write(ground.path("real/.stores-own.tmp"), "other").unwrap();
    store.put(&name("a"), &Secret::new("y")).await.unwrap();
    assert!(!ground.path("real/.store-abc.tmp").exists() && ground.path("real/.stores-own.tmp").exists());
    assert!(fs::symlink_metadata(ground.path("kraken.age")).unwrap().is_symlink());
    assert_eq!(direct.get(&name("a")).await.unwrap().unwrap().expose(), "y");
}

#[tokio::test]
async fn values_that_no_store_takes_are_refused() {
    let ground = Ground::new();
    let store = ground.store();
    for (value, said) in [(String::new(), "is empty"), ("x".repeat(super::super::MAX_VALUE + 1), "more than 65536")] {
        let error = store.create(&name("a"), &Secret::new(value.clone())).await.unwrap_err();
        assert!(told(&error).contains(said), "{error}");
        assert!(store.put(&name("a"), &Secret::new(value)).await.is_err());
    }
    store.put(&name("a"), &Secret::new("x".repeat(super::super::MAX_VALUE))).await.unwrap();
    assert_eq!(store.get(&name("a")).await.unwrap().unwrap().expose().len(), super::super::MAX_VALUE);
}

#[test]
fn a_newer_format_is_told_and_nothing_is_quoted() {
    for (text, said) in [
        (r#"{"rollcall_secrets":2,"more":"hunter2"}"#, "version 2 of the format"),
        (
            r#"{"rollcall_secrets":1,"cluster":"c","id":"i","generation":1,"values":{"a":["hunter2"]}}"#,
            "damaged inside",
        ),
        (
            r#"{"rollcall_secrets":1,"cluster":"c","id":"i","generation":1,"values":{"A!":"hunter2"}}"#,
            "one of the names",
        ),
        (r#"["hunter2"]"#, "no store of Rollcall's"),
    ] {
        let wrong = Content::parse(text.as_bytes(), "c").unwrap_err();
        assert!(wrong.contains(said) && !wrong.contains("hunter2"), "{wrong}");
    }
}

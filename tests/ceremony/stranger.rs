//! Shares and a backup that real ceremonies made, opened by the stranger's kit (`tests/stranger/`),
//! which was written from `docs/` alone.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rsa::pkcs8::{DecodePrivateKey as _, EncodePublicKey as _};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use strongroom_ceremony::shares::Deal;
use strongroom_ceremony::{CeremonyId, Mode, Share, jwe, shares, words};

use crate::birth::finished;
use crate::later::Later;
use crate::later::backup::in_use;
use crate::rig::{People, Room, files, stderr};
use crate::support;

/// A run of one of the kit's programs.
struct Kit {
    folder: tempfile::TempDir,
    command: Command,
}

impl Kit {
    /// None where there is no Python.
    fn new(program: &str) -> Option<Self> {
        let mut command = Command::new(support::cryptography()?);
        command.arg(
            Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("tests/stranger")
                .join(program),
        );
        Some(Self {
            folder: tempfile::tempdir().unwrap(),
            command,
        })
    }

    fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.command.arg(argument.into());
        self
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// An encrypted share, to be opened with that custodian's key.
    fn jwe(self, path: &Path, name: &str) -> Self {
        let passphrase = self.file(
            &format!("{name}.passphrase"),
            format!("{}\n", People::passphrase(name)).as_bytes(),
        );
        self.arg("--jwe")
            .arg(path)
            .arg("--key")
            .arg(People::all().file(name))
            .arg("--passphrase-file")
            .arg(passphrase)
    }

    /// A share from paper.
    fn words(self, name: &str, text: &str) -> Self {
        let list: String = bip39::Language::English
            .word_list()
            .iter()
            .flat_map(|word| [*word, "\n"])
            .collect();
        let list = self.file("list", list.as_bytes());
        let path = self.file(&format!("{name}.words"), text.as_bytes());
        self.arg("--word-list").arg(list).arg("--words").arg(path)
    }

    fn output(mut self) -> Output {
        self.command.output().unwrap()
    }

    fn succeeds(self) -> Value {
        let output = self.output();
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// It must refuse that share, and have nothing to print.
    fn refuses(self, why: &str) {
        let output = self.output();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{why}: {said}");
        assert!(said.contains(why), "{why}: {said}");
        assert!(output.stdout.is_empty());
    }
}

fn share_file(dir: &Path, name: &str) -> PathBuf {
    let fingerprint = People::all().key(name).participant().fingerprint();
    dir.join(format!("{fingerprint}.jwe"))
}

fn secrets(said: &Value) -> [Vec<u8>; 2] {
    ["so", "user"].map(|name| {
        BASE64_STANDARD
            .decode(said[name].as_str().unwrap())
            .unwrap()
    })
}

/// What one of the initial ceremony's custodians was given.
fn share(name: &str) -> Share {
    let path = share_file(&finished().dir().join("shares"), name);
    shares::open(
        fs::read_to_string(path).unwrap().trim(),
        &People::all().key(name),
    )
    .unwrap()
}

#[test]
fn a_stranger_gets_the_pins_back() {
    let room = finished();
    let pins = room.recover(Mode::Ceremony, &["Alice", "Bob", "Carol"]);
    let wanted = [pins.so.to_vec(), pins.user.to_vec()];
    assert_eq!(
        fs::read(room.appliance().join("hsm-pin")).unwrap(),
        wanted[1]
    );
    for names in [
        ["Alice", "Bob", "Carol"],
        ["Erin", "Alice", "Dave"],
        ["Carol", "Erin", "Bob"],
    ] {
        let Some(mut kit) = Kit::new("shares.py") else {
            return;
        };
        kit = kit.arg(room.transcript_path());
        for name in names {
            kit = kit.jwe(&share_file(&room.dir().join("shares"), name), name);
        }
        assert_eq!(secrets(&kit.succeeds()), wanted, "{names:?}");
    }
    // From paper: as they are printed, as people type them, and one share of each sort.
    let typed = |name: &str| share(name).to_words().unwrap().to_string();
    let numbered: String =
        typed("Bob")
            .split_whitespace()
            .zip(1..)
            .fold(String::new(), |text, (word, number)| {
                let word = word.to_uppercase();
                text + &format!("{number}. {}\r\n", word.get(..4).unwrap_or(&word))
            });
    let kit = Kit::new("shares.py")
        .unwrap()
        .arg(room.transcript_path())
        .words("Alice", &typed("Alice"))
        .words("Bob", &numbered)
        .jwe(&share_file(&room.dir().join("shares"), "Dave"), "Dave");
    assert_eq!(secrets(&kit.succeeds()), wanted);
}

/// Each sort of bad share, as `docs/share-format.md` has them: both programs refuse it, and for the
/// same reason.
#[test]
#[allow(clippy::too_many_lines, reason = "a list of bad shares")]
fn both_programs_refuse_each_sort_of_bad_share() {
    let room = finished();
    let Some(_) = support::cryptography() else {
        return;
    };
    let carol = People::all().key("Carol");
    let path = share_file(&room.dir().join("shares"), "Carol");
    let good = fs::read_to_string(&path).unwrap();
    let plain: Value = serde_json::from_slice(&jwe::open(good.trim(), &carol).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let both = |why: &str, first: &str, text: &[u8]| {
        let file = folder.path().join("share.jwe");
        fs::write(&file, text).unwrap();
        let kit = Kit::new("shares.py")
            .unwrap()
            .arg(room.transcript_path())
            .jwe(&file, "Carol");
        let kit = ["Alice", "Bob"].into_iter().fold(kit, |kit, name| {
            kit.jwe(&share_file(&room.dir().join("shares"), name), name)
        });
        kit.refuses(why);
        let said = add_after_two(&String::from_utf8_lossy(text), "Carol");
        assert!(
            said.as_ref().is_err_and(|said| said.contains(first)),
            "{why}: {said:?}"
        );
    };
    let sealed = |plain: &Value| {
        jwe::seal(plain.to_string().as_bytes(), carol.participant())
            .unwrap()
            .into_bytes()
    };

    // What was encrypted is a share, but another.
    let flip = |pointer: &str| {
        let mut bytes = BASE64_STANDARD
            .decode(plain.pointer(pointer).unwrap().as_str().unwrap())
            .unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        json!(BASE64_STANDARD.encode(bytes))
    };
    let not_one = "not a share of this format";
    for (pointer, value, why, first) in [
        ("/mode", json!("REHEARSAL"), "of a REHEARSAL", "REHEARSAL"),
        (
            "/ceremony_id",
            json!("0".repeat(32)),
            "another ceremony",
            "another ceremony",
        ),
        (
            "/custodian",
            json!("0".repeat(64)),
            "of nobody",
            "of nobody",
        ),
        ("/threshold", json!(2), "(threshold)", "its threshold"),
        (
            "/so/salt",
            flip("/so/salt"),
            "dealt (so)",
            "security officer's PIN",
        ),
        (
            "/so/share",
            flip("/so/share"),
            "dealt (so)",
            "security officer's PIN",
        ),
        (
            "/user/share",
            flip("/user/share"),
            "dealt (user)",
            "user PIN",
        ),
        ("/index", json!(2), "the piece of so", not_one),
        ("/index", json!(0), "an index out of range", not_one),
        ("/format", json!(2), "another format", not_one),
        ("/format", json!("1"), "not of its type", not_one),
        ("/threshold", json!(null), "not of its type", not_one),
        ("/mode", json!("ceremony"), "an unknown mode", not_one),
        (
            "/ceremony_id",
            json!("A".repeat(32)),
            "in hexadecimal",
            not_one,
        ),
        ("/so/salt", json!("AAAA"), "the piece of so", not_one),
        ("/so/share", json!("Aw"), "not base64", not_one),
        ("/so/share", json!("Aw=="), "the piece of so", not_one),
        ("/so/share", json!("A3=="), "canonical", not_one),
        (
            "/so",
            json!([plain["so"]["salt"], plain["so"]["share"]]),
            "not of its type",
            not_one,
        ),
        ("/more", json!(1), "missing or too many", not_one),
        ("/so/more", json!(1), "missing or too many", not_one),
    ] {
        let mut changed = plain.clone();
        set(&mut changed, pointer, value);
        both(why, first, &sealed(&changed));
    }
    let text = plain.to_string();
    for (from, to) in [
        ("{\"", "{\"index\":3,\""),
        ("\"index\":3", "\"index\":3.0"),
        ("{", " {"),
        ("\"mode\":", "\"mode\":\"CEREMONY\",\"mode\":"),
    ] {
        assert!(text.contains(from));
        let changed = text.replacen(from, to, 1);
        let sealed = jwe::seal(changed.as_bytes(), carol.participant()).unwrap();
        both("share.jwe: ", not_one, sealed.as_bytes());
    }

    // The envelope.
    let parts: Vec<&str> = good.trim().split('.').collect();
    let header: Value = serde_json::from_slice(&url(parts[0])).unwrap();
    let with_header = |header: &Value| {
        let mut parts = parts.clone();
        let text = base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(header.to_string());
        parts[0] = &text;
        parts.join(".").into_bytes()
    };
    let foreign = "not an encrypted share";
    for (pointer, value) in [
        ("/alg", json!("ECDH-ES+A256KW")),
        ("/enc", json!("A128GCM")),
        ("/epk/crv", json!("P-384")),
        (
            "/epk/x",
            json!("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE"),
        ),
        ("/epk/x", json!("AAAA")),
        ("/epk/d", json!("AAAA")),
        ("/zip", json!("DEF")),
        ("/apu", json!("")),
        (
            "/epk",
            json!(["EC", "P-256", header["epk"]["x"], header["epk"]["y"]]),
        ),
    ] {
        let mut changed = header.clone();
        set(&mut changed, pointer, value);
        both("share.jwe: ", foreign, &with_header(&changed));
    }
    let mut other = header.clone();
    other["kid"] = People::all().key("Dave").participant().fingerprint().into();
    both("somebody else", "another participant", &with_header(&other));
    both("altered", "altered or damaged", &{
        // The same header, written in another order.
        let mut text = header.to_string();
        text.insert(1, ' ');
        let mut parts = parts.clone();
        let text = base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(text);
        parts[0] = &text;
        parts.join(".").into_bytes()
    });
    let tag = good.trim().len() - 4;
    let mut altered = good.trim().as_bytes().to_vec();
    altered[tag] = if altered[tag] == b'A' { b'B' } else { b'A' };
    both("altered", "altered or damaged", &altered);
    for text in [
        good.trim().replacen("..", ".QUJD.", 1),
        good.trim().to_owned() + "=",
        good.trim().to_owned() + ".",
        format!("\u{a0}{}", good.trim()),
        good.trim().replacen('.', "\n.", 1),
        "A".repeat(70_000),
        String::new(),
    ] {
        both("share.jwe: ", foreign, text.as_bytes());
    }
    // White space at the ends is none of it.
    let file = folder.path().join("share.jwe");
    fs::write(&file, format!(" \t\r\n{}\r\n\n", good.trim())).unwrap();
    let kit = ["Alice", "Bob"].into_iter().fold(
        Kit::new("shares.py").unwrap().arg(room.transcript_path()),
        |kit, name| kit.jwe(&share_file(&room.dir().join("shares"), name), name),
    );
    kit.jwe(&file, "Carol").succeeds();
    add_after_two(&fs::read_to_string(&file).unwrap(), "Carol").unwrap();

    // Twice, too few, a wrong passphrase.
    let kit = || Kit::new("shares.py").unwrap().arg(room.transcript_path());
    kit()
        .jwe(&path, "Carol")
        .jwe(&path, "Carol")
        .refuses("there already");
    kit()
        .jwe(&path, "Carol")
        .refuses("1 shares, and 3 are needed");
    let wrong = folder.path().join("passphrase");
    fs::write(&wrong, "another passphrase").unwrap();
    kit()
        .arg("--jwe")
        .arg(&path)
        .arg("--key")
        .arg(People::all().file("Carol"))
        .arg("--passphrase-file")
        .arg(&wrong)
        .refuses("the passphrase is wrong");
}

#[test]
#[allow(clippy::too_many_lines, reason = "a list of bad shares")]
fn both_programs_read_the_same_words() {
    let room = finished();
    if support::cryptography().is_none() {
        return;
    }
    let good = share("Carol").to_words().unwrap().to_string();
    let mut swapped: Vec<&str> = good.split_whitespace().collect();
    swapped.swap(3, 4);
    let packed = words::decode(&good).unwrap();
    let changed = |at: usize, byte: u8| {
        let mut bytes = packed.to_vec();
        bytes[at] = byte;
        words::encode(&bytes).to_string()
    };
    let so = usize::from(packed[20]);
    for (text, why, first) in [
        (
            good.replacen(' ', " zebra ", 1),
            "too many words",
            "checksum",
        ),
        (
            good.replacen(' ', " qwerty ", 1),
            "none of the list",
            "not in the list",
        ),
        (
            good.replacen(' ', " abandonx ", 1),
            "none of the list",
            "not in the list",
        ),
        (
            good.replacen(' ', " aba ", 1),
            "none of the list",
            "not in the list",
        ),
        // Two characters that lower case makes a k, and a letter of no word between two.
        (
            good.replacen(' ', " \u{212a}een ", 1),
            "in no word",
            "not in the list",
        ),
        (
            good.replacen(' ', " \u{e9} ", 1),
            "in no word",
            "not in the list",
        ),
        (
            good.replacen(' ', "\u{2003}", 1),
            "in no word",
            "not in the list",
        ),
        (swapped.join(" "), "checksum", "checksum"),
        (good.clone() + " abandon", "too many words", "checksum"),
        (
            good.rsplit_once(' ').unwrap().0.to_owned(),
            "too few",
            "checksum",
        ),
        (String::new(), "no words", "checksum"),
        (
            words::encode(b"x").to_string(),
            "not of a share",
            "not a share",
        ),
        (
            words::encode(&[]).to_string(),
            "not of a share",
            "not a share",
        ),
        (changed(0, 2), "this format", "not a share"),
        (changed(1, 2), "this format", "not a share"),
        (changed(1, 1), "of a REHEARSAL", "REHEARSAL"),
        (
            changed(2, packed[2] ^ 1),
            "another ceremony",
            "another ceremony",
        ),
        (changed(18, 9), "of nobody", "of nobody"),
        (changed(18, 4), "dealt (so)", "security officer's PIN"),
        (changed(19, 2), "threshold", "its threshold"),
        (
            changed(21, packed[21] ^ 1),
            "dealt (so)",
            "security officer's PIN",
        ),
        (changed(packed.len() - 1, 1), "dealt (user)", "user PIN"),
        (
            words::encode(&[&packed[..], &[0]].concat()).to_string(),
            "too many for a share",
            "not a share",
        ),
        (
            // No values at all, of either secret.
            words::encode(
                &[
                    &packed[..20],
                    &[0],
                    &packed[21..53],
                    &[0],
                    &packed[54 + so..86 + so],
                ]
                .concat(),
            )
            .to_string(),
            "no bytes",
            "not a share",
        ),
    ] {
        let kit = Kit::new("shares.py").unwrap().arg(room.transcript_path());
        kit.words("Carol", &text).refuses(why);
        let said = add_words(&text);
        assert!(
            said.as_ref().is_err_and(|said| said.contains(first)),
            "{why}: {said:?}"
        );
    }
    add_words(&good).unwrap();
}

/// Sets a member, which may be a new one.
fn set(document: &mut Value, pointer: &str, value: Value) {
    let (object, name) = pointer.rsplit_once('/').unwrap();
    document.pointer_mut(object).unwrap()[name] = value;
}

fn url(text: &str) -> Vec<u8> {
    base64::prelude::BASE64_URL_SAFE_NO_PAD
        .decode(text)
        .unwrap()
}

fn recovery() -> (Deal, strongroom_ceremony::Recovery) {
    let room = finished();
    let transcript = room.transcript();
    let id = CeremonyId::parse(transcript[0]["ceremony_id"].as_str().unwrap()).unwrap();
    let outputs = room.outputs("pins");
    let commitments = serde_json::from_value(outputs["commitments"].clone()).unwrap();
    let deal = Deal::new(&room.plan(), id, Mode::Ceremony);
    let recovery = strongroom_ceremony::Recovery::new(deal.clone(), commitments).unwrap();
    (deal, recovery)
}

/// What this program says of an encrypted share that comes third.
fn add_after_two(text: &str, name: &str) -> Result<(), String> {
    let (_, mut recovery) = recovery();
    for name in ["Alice", "Bob"] {
        recovery.add(share(name));
    }
    let share = shares::open(text, &People::all().key(name)).map_err(|error| error.to_string())?;
    taken(recovery.add(share))
}

fn add_words(text: &str) -> Result<(), String> {
    let (deal, mut recovery) = recovery();
    let share = Share::from_words(text, &deal).map_err(|error| error.to_string())?;
    taken(recovery.add(share))
}

fn taken(added: shares::Added) -> Result<(), String> {
    match added {
        shares::Added::Refused(refusal) => Err(refusal.to_string()),
        shares::Added::More { .. } | shares::Added::Complete(_) => Ok(()),
    }
}

/// The keys that come out open what the old token sealed, and are the private halves of what the
/// transcript names; with them an export of the store gives its KEKs, and those a client's
/// ciphertext.
#[test]
fn a_stranger_opens_a_backup_and_with_its_keys_the_store() {
    let (room, sealed) = in_use();
    let backup = Later::new(&room, &["backup"]);
    backup.run_to_the_end();
    let Some(kit) = Kit::new("backup.py") else {
        return;
    };
    let shares = backup.dir.join("transport-shares");
    let with_shares = |kit: Kit, names: &[&str]| {
        names
            .iter()
            .fold(kit, |kit, name| kit.jwe(&share_file(&shares, name), name))
    };
    let keys = room.path().join("keys-for-a-stranger");
    let kit = kit.arg(&backup.dir).arg("--out").arg(&keys);
    let opened = with_shares(kit, &["Bob", "Carol", "Erin"]).succeeds();
    assert_eq!(
        opened,
        json!({
            "strongroom-master": "private key",
            "strongroom-transfer": "private key",
            "strongroom-memory-master": "private key",
            "strongroom-store": "secret key",
        })
    );
    for file in files(&keys) {
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", file.display());
    }
    // And this program sees the same keys: their public halves are those of the token.
    let summary = backup.outputs("export");
    for key in summary["keys"].as_array().unwrap() {
        let Some(sha256) = key["sha256"].as_str() else {
            continue;
        };
        let file = keys.join(format!("{}.pem", key["label"].as_str().unwrap()));
        let private = rsa::PrivateKey::from_pkcs8_pem(&fs::read_to_string(file).unwrap()).unwrap();
        let spki = private.to_public_key().to_public_key_der().unwrap();
        assert_eq!(
            base16ct::lower::encode_string(&Sha256::digest(spki.as_bytes())),
            sha256
        );
    }
    reads_the_store(&room, &backup, &keys, &sealed);
    refuses_bad_backups(&room, &backup);
}

fn reads_the_store(room: &Room, backup: &Later<'_>, keys: &Path, sealed: &Path) {
    let store = |words: &[&str], file: &Path| {
        room.command(&["store"])
            .args(words)
            .arg(file)
            .arg("--config")
            .arg(room.appliance().join("strongroom.toml"))
            .output()
            .unwrap()
    };
    let file = room.path().join("export");
    let exported = store(&["export"], &file);
    assert!(exported.status.success(), "{}", stderr(&exported));
    let content = fs::read(backup.dir.join("backup.jsonl")).unwrap();
    let content: Value =
        serde_json::from_slice(content.split(|byte| *byte == b'\n').next().unwrap()).unwrap();
    let kit = |file: &Path| Kit::new("export.py").unwrap().arg(file);
    let with_keys = |file: &Path| kit(file).arg("--keys").arg(keys);
    let found = with_keys(&file)
        .arg("--epoch")
        .arg(content["epoch"].as_str().unwrap())
        .succeeds();
    assert_eq!(found["store_id"], content["store_id"]);
    assert_eq!(
        found["keys"],
        json!({"vault-unseal": [1], "signer": [1]}),
        "{found}"
    );
    assert_eq!(found["unwrapped"], 2);
    assert_eq!(kit(&file).succeeds()["records"], found["records"]);
    let decrypt = |name: &str| with_keys(&file).arg("--decrypt").arg(name).arg(sealed);
    let opened = decrypt("vault-unseal").output();
    assert_eq!(opened.stdout, b"from the old token", "{}", stderr(&opened));
    decrypt("signer").refuses("a key that signs");
    decrypt("other").refuses("no key of that name");

    // The same with nothing but the token and its PIN.
    let module = strongroom_softhsm::module_path().unwrap();
    let with_token = |file: &Path, serial: &str| {
        let mut kit = kit(file)
            .arg("--module")
            .arg(&module)
            .arg("--serial")
            .arg(serial)
            .arg("--pin-file")
            .arg(room.appliance().join("hsm-pin"));
        kit.command.envs(room.env());
        kit
    };
    let lines = backup.transcript();
    let close = lines.iter().find(|line| line["type"] == "close").unwrap();
    let serial = close["summary"]["token"]["serial"].as_str().unwrap();
    assert_eq!(with_token(&file, serial).succeeds(), found);
    let opened = with_token(&file, serial)
        .arg("--decrypt")
        .arg("vault-unseal")
        .arg(sealed)
        .output();
    assert_eq!(opened.stdout, b"from the old token", "{}", stderr(&opened));
    with_token(&file, "0").refuses("the token does not open");

    // What is no export is none for either program.
    let good = fs::read(&file).unwrap();
    let place = room.state().join("store");
    let aside = room.path().join("store-aside");
    fs::rename(&place, &aside).unwrap();
    for (name, bytes) in bad_exports(&good) {
        let path = room.path().join("bad-export");
        fs::write(&path, bytes).unwrap();
        let said = with_keys(&path).output();
        assert_eq!(said.status.code(), Some(1), "{name}: {}", stderr(&said));
        let said = with_token(&path, serial).output();
        assert_eq!(said.status.code(), Some(1), "{name}: {}", stderr(&said));
        let refused = store(&["import"], &path);
        assert!(!refused.status.success(), "{name}");
        assert!(!place.exists(), "{name}");
    }
    fs::rename(&aside, &place).unwrap();
}

/// What is no export, made of one, and what is wrong with it.
fn bad_exports(good: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let rehashed = |mut bytes: Vec<u8>| {
        bytes.extend_from_slice(&Sha256::digest(&bytes));
        bytes
    };
    let body = &good[..good.len() - 32];
    // The header's entry, and where the first record's begins.
    let header =
        4 + 1 + 4 + usize::try_from(u32::from_be_bytes(body[18..22].try_into().unwrap())).unwrap();
    let after = 13 + header;
    vec![
        ("cut", good[..good.len() - 1].to_vec()),
        ("one byte more", [good, &[0]].concat()),
        ("one byte changed", {
            let mut bytes = good.to_vec();
            bytes[40] ^= 1;
            bytes
        }),
        (
            "another format",
            rehashed([b"SRex\x02", &body[5..]].concat()),
        ),
        ("more inside", rehashed([body, &[0]].concat())),
        (
            "one record less than it says",
            rehashed([&body[..12], &[body[12] + 1], &body[13..]].concat()),
        ),
        (
            "no header",
            rehashed([&body[..12], &[body[12] - 1], &body[after..]].concat()),
        ),
        (
            "the header twice",
            rehashed([&body[..12], &[body[12] + 1], &body[13..after], &body[13..]].concat()),
        ),
        ("nothing", rehashed([&body[..5], &[0; 8]].concat())),
        ("a record of another store", {
            let mut bytes = body.to_vec();
            // The store id in the header's envelope.
            bytes[22 + 6] ^= 1;
            rehashed(bytes)
        }),
        ("a record that was changed", {
            let mut bytes = body.to_vec();
            *bytes.last_mut().unwrap() ^= 1;
            rehashed(bytes)
        }),
    ]
}

/// What must not be taken, by either program.
fn refuses_bad_backups(room: &Room, backup: &Later<'_>) {
    let shares = backup.dir.join("transport-shares");
    let with_shares = |kit: Kit, names: &[&str]| {
        names
            .iter()
            .fold(kit, |kit, name| kit.jwe(&share_file(&shares, name), name))
    };
    let good = fs::read_to_string(backup.dir.join("backup.jsonl")).unwrap();
    let refused = |text: &str, why: &str| {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("backup.jsonl"), text).unwrap();
        fs::copy(
            backup.transcript_path(),
            folder.path().join("transcript.jsonl"),
        )
        .unwrap();
        let kit = Kit::new("backup.py").unwrap().arg(folder.path());
        with_shares(kit, &["Bob", "Carol", "Erin"]).refuses(why);
    };
    let again = |text: &str| strongroom_ceremony::backup::Backup::parse(text.as_bytes());
    assert!(again(&good).is_ok());
    for (from, to) in [
        ("{\"format\":1", " {\"format\":1"),
        ("{\"format\":1", "{\"format\":1.0"),
        ("{\"format\":1", "{\"format\":2"),
        ("{\"format\":1", "{\"format\":1,\"format\":1"),
        ("{\"format\":1", "{\"more\":null,\"format\":1"),
        ("\"threshold\":3", "\"threshold\":null"),
        ("{\"key\":{", "{\"key\":{\"more\":1,"),
        ("\"spki\":null,", ""),
        ("\"spki\":null,", "\"spki\":[],"),
        ("\"mode\":\"CEREMONY\"", "\"mode\":\"PARTY\""),
        ("}\n{", "}\r\n{"),
        ("}\n{", "}\n\n{"),
        ("\"hmac_sha256\":\"", "\"hmac_sha256\":\"0"),
    ] {
        assert!(good.contains(from), "{from}");
        let changed = good.replacen(from, to, 1);
        refused(&changed, "backup.py: ");
        assert!(again(&changed).is_err(), "{to}");
    }
    for changed in [
        good.trim_end().to_owned(),
        good.clone() + "\n",
        good.clone() + "{}\n",
        "\u{feff}".to_owned() + &good,
        good.replacen('\n', "", 1),
    ] {
        refused(&changed, "backup.py: ");
        assert!(again(&changed).is_err());
    }
    // Whole, and not the one that was made.
    let name = good.replacen("\"name\":\"vault-keys-1\"", "\"name\":\"vault-keys-2\"", 1);
    assert_ne!(name, good);
    refused(&name, "not the file that the transcript names");
    // Two shares, and those of the PINs.
    let kit = Kit::new("backup.py").unwrap().arg(&backup.dir);
    with_shares(kit, &["Bob", "Carol"]).refuses("2 shares, and 3 are needed");
    let kit = Kit::new("backup.py").unwrap().arg(&backup.dir);
    kit.jwe(&share_file(&room.dir().join("shares"), "Bob"), "Bob")
        .refuses("of another ceremony");
}

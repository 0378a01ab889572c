//! A machine that was through a ceremony, kept for all tests that begin with one. Made once for an
//! image, so that one test by itself starts at once.

use std::fs;
use std::path::{Path, PathBuf};

use tokio::sync::Mutex;

use crate::ceremony::{born, make_key, seal, wait_until_healthy};
use crate::machine::{Image, Machine, run};
use crate::support::Pki;

const SEALED: &[u8] = b"sealed before";

pub struct Kept {
    folder: PathBuf,
    /// The seal client.
    client: PathBuf,
}

impl Kept {
    pub async fn of(image: &Image, client: PathBuf) -> Self {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
        let _one = ONE_AT_A_TIME.lock().await;
        let kept = Self {
            folder: Path::new(env!("CARGO_TARGET_TMPDIR")).join("image-kept"),
            client,
        };
        let sums = fs::read(image.file("SHA256SUMS")).unwrap();
        if fs::read(kept.made_of()).ok() != Some(sums.clone()) {
            kept.make(image).await;
            // At last: what is there then is whole.
            fs::write(kept.made_of(), sums).unwrap();
        }
        kept
    }

    async fn make(&self, image: &Image) {
        let _ = fs::remove_dir_all(&self.folder);
        fs::create_dir_all(&self.folder).unwrap();
        let mut machine = Machine::new(image);
        let room = born(image, &mut machine).await;
        make_key(&machine, &room.pki).await;
        let sealed = seal(&machine, &room.pki, &self.client, "keep", SEALED);
        fs::write(self.sealed(), sealed).unwrap();
        run(std::process::Command::new("cp")
            .arg("-r")
            .arg(room.path().join("pki"))
            .arg(self.folder.join("pki")));
        // Once more without the medium, and a stop in between: what is kept is a machine in use.
        machine.stop();
        machine.eject();
        machine.start();
        self.still_opens(&machine).await;
        machine.stop();
        machine.keep(&self.folder);
    }

    pub fn machine(&self) -> Machine {
        Machine::copy_of(&self.folder)
    }

    /// What was sealed before the machine was kept.
    pub async fn still_opens(&self, machine: &Machine) {
        let pki = Pki::made_in(&self.folder.join("pki"));
        wait_until_healthy(machine, &pki).await;
        let sealed = fs::read(self.sealed()).unwrap();
        assert_eq!(seal(machine, &pki, &self.client, "open", &sealed), SEALED);
    }

    fn sealed(&self) -> PathBuf {
        self.folder.join("sealed")
    }

    /// The image's checksums.
    fn made_of(&self) -> PathBuf {
        self.folder.join("made-of")
    }
}

//! The writer: one line, one sync; and going on after a power cut.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use p256::ecdsa;
use serde_json::{Value, json};
use strongroom_core::{files, lock};

use super::super::encoding::{base64, hex, sha256};
use super::super::record::Summary;
use super::super::verify;
use super::super::{CeremonyError, CeremonyId, Kind, Mode, Participant, Role, Step};
use super::line::{
    Begin, Body, Close, Done, FORMAT, GENESIS_HASH, Line, Note, Open, Seal, Signature, Software,
};
use super::{FILE, History, Opening, seal_digest, signing_digest};

/// An open transcript. Every line is on the disk when its call returns.
pub struct Transcript {
    path: PathBuf,
    file: File,
    /// Bytes up to the end of the last whole line.
    length: u64,
    mode: Mode,
    kind: Kind,
    id: CeremonyId,
    /// Of the last line.
    seq: u64,
    hash: [u8; 32],
    time: String,
    /// Number and hash of the `close` line.
    closed: Option<(u64, [u8; 32])>,
    sealed: bool,
    /// Nothing may follow.
    ended: bool,
}

impl Transcript {
    /// Begins one in a directory that has none. It appears whole, with its first line, or not at
    /// all.
    ///
    /// # Errors
    /// [`CeremonyError::Write`], also if there is one; [`CeremonyError::Transcript`] if another
    /// process writes it.
    pub fn create(dir: &Path, opening: &Opening<'_>) -> Result<Self, CeremonyError> {
        let path = super::path(dir);
        let fail = |error| CeremonyError::write(&path, error);
        let is_new = || match path.try_exists() {
            Ok(false) => Ok(()),
            Ok(true) => Err(fail(io::ErrorKind::AlreadyExists.into())),
            Err(error) => Err(fail(error)),
        };
        is_new()?;
        let body = Body::Open(Open {
            format: FORMAT,
            ceremony_id: opening.ceremony_id.to_string(),
            kind: opening.kind.name().to_owned(),
            previous_sha256: opening.previous_sha256.map(str::to_owned),
            plan_sha256: opening.plan.hash_hex(),
            plan: opening.plan.text().to_owned(),
            signatures: opening.signatures.to_vec(),
            software: Software {
                version: opening.version.to_owned(),
                binary_sha256: opening.binary_sha256.to_owned(),
            },
        });
        let time = now();
        let mut bytes = Line::bytes(1, &time, opening.mode, &GENESIS_HASH, &body)
            .map_err(|error| fail(error.into()))?;
        let hash = sha256(&bytes);
        bytes.push(b'\n');
        let aside = dir.join(format!("{FILE}.new"));
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o600);
        let mut file = files::create_itself(&aside, &mut options).map_err(fail)?;
        // Locked before it gets its name: of two that begin at once, the second finds this file
        // locked, or the first one's transcript.
        lock_file(&file, &path)?;
        is_new()?;
        // One that a kill left there may have another mode.
        file.set_permissions(Permissions::from_mode(0o600))
            .and_then(|()| file.set_len(0))
            .and_then(|()| file.write_all(&bytes))
            .and_then(|()| file.sync_all())
            .and_then(|()| fs::rename(&aside, &path))
            .and_then(|()| File::open(dir)?.sync_all())
            .map_err(fail)?;
        Ok(Self {
            file,
            length: bytes.len() as u64,
            mode: opening.mode,
            kind: opening.kind,
            id: opening.ceremony_id,
            seq: 1,
            hash,
            time,
            closed: None,
            sealed: false,
            ended: false,
            path,
        })
    }

    /// Goes on with the one in a directory. A last line that a power cut tore is cut off, and a
    /// `note` says so.
    ///
    /// # Errors
    /// [`CeremonyError::Read`], [`CeremonyError::Write`]; [`CeremonyError::Transcript`] if what is
    /// there does not verify, or another process writes it.
    pub fn resume(dir: &Path) -> Result<(Self, History), CeremonyError> {
        let path = super::path(dir);
        let file = open_file(&path)?;
        let bytes = super::read(&path).map_err(|error| CeremonyError::read(&path, error))?;
        let whole = bytes
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        let (lines, torn) = bytes.split_at(whole);
        let state = verify::resume(lines).map_err(|problem| CeremonyError::Transcript {
            path: path.clone(),
            problem: format!("{problem}. Keep it as it is, and look at it with `strongroom ceremony verify`; nothing was changed"),
        })?;
        let mut transcript = Self {
            path,
            file,
            length: lines.len() as u64,
            mode: state.history.mode,
            kind: state.history.kind,
            id: state.history.ceremony_id,
            seq: state.seq,
            hash: state.hash,
            time: state.time,
            closed: state.closed,
            sealed: state.history.sealed,
            ended: state.history.ended,
        };
        let mut history = state.history;
        if !torn.is_empty() {
            transcript.cut()?;
            let hash = hex(&sha256(torn));
            let step = history
                .begun
                .as_ref()
                .map(|(step, _)| *step)
                .or_else(|| history.next())
                .unwrap_or(Step::Closing);
            // Behind the end nothing may stand; what was cut off there was nothing of ours.
            if !transcript.ended {
                transcript.note(
                    step,
                    "the last line was torn by an interruption and was cut off",
                    &json!({"torn_bytes": torn.len(), "torn_sha256": hash}),
                )?;
            }
            history.torn = Some((torn.len(), hash));
        }
        Ok((transcript, history))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it counts.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Which ceremony.
    pub fn ceremony_id(&self) -> CeremonyId {
        self.id
    }

    /// A step begins, or is taken up again. `actor`: who is present and acts. `inputs`: an object
    /// of hashes and values, never a secret.
    ///
    /// # Errors
    /// [`CeremonyError::Write`], [`CeremonyError::Transcript`] if it is closed.
    pub fn begin(
        &mut self,
        step: Step,
        actor: &[&str],
        inputs: &Value,
    ) -> Result<(), CeremonyError> {
        self.open_for("begin")?;
        self.append(&Body::Begin(Begin {
            step,
            actor: owned(actor),
            inputs: inputs.clone(),
        }))
    }

    /// Anything worth keeping: a share that was refused, a step that starts over and why.
    ///
    /// # Errors
    /// [`CeremonyError::Write`], [`CeremonyError::Transcript`] if it is complete.
    pub fn note(&mut self, step: Step, text: &str, data: &Value) -> Result<(), CeremonyError> {
        self.not_ended()?;
        self.append(&Body::Note(Note {
            step,
            text: text.to_owned(),
            data: data.clone(),
        }))
    }

    /// A step is done. `outputs`: an object of public keys, fingerprints, attributes and hashes,
    /// never a secret; see [`super::super::record`].
    ///
    /// # Errors
    /// [`CeremonyError::Write`], [`CeremonyError::Transcript`] if it is closed.
    pub fn done(
        &mut self,
        step: Step,
        actor: &[&str],
        outputs: &Value,
    ) -> Result<(), CeremonyError> {
        self.open_for("done")?;
        self.append(&Body::Done(Done {
            step,
            actor: owned(actor),
            outputs: outputs.clone(),
        }))
    }

    /// All steps are done: the summary that everyone signs. `audit_key`: the HSM's,
    /// `SubjectPublicKeyInfo`, DER.
    ///
    /// # Errors
    /// [`CeremonyError::Write`], [`CeremonyError::Transcript`] if it is closed.
    pub fn close(&mut self, summary: &Summary, audit_key: &[u8]) -> Result<(), CeremonyError> {
        self.open_for("close")?;
        self.append(&Body::Close(Close {
            summary: summary.clone(),
            audit_key: base64(audit_key),
        }))?;
        self.closed = Some((self.seq, self.hash));
        Ok(())
    }

    /// The hash of its closing line, once it is closed.
    pub fn closing(&self) -> Option<[u8; 32]> {
        self.closed.map(|(_, hash)| hash)
    }

    /// What everyone signs, once it is closed.
    ///
    /// # Errors
    /// [`CeremonyError::Transcript`] before.
    pub fn signing_digest(&self) -> Result<[u8; 32], CeremonyError> {
        let (seq, hash) = self
            .closed
            .ok_or_else(|| self.refuse("it is not closed yet: there is nothing to sign"))?;
        Ok(signing_digest(&self.id, seq, &hash))
    }

    /// Someone signed [`Transcript::signing_digest`]: r || s. In the plan's order.
    ///
    /// # Errors
    /// [`CeremonyError::Key`] if it is not their signature: nothing is written then;
    /// [`CeremonyError::Write`], [`CeremonyError::Transcript`].
    pub fn sign(
        &mut self,
        role: Role,
        participant: &Participant,
        signature: &[u8; 64],
    ) -> Result<(), CeremonyError> {
        self.not_ended()?;
        if !participant.verifies(&self.signing_digest()?, signature) {
            return Err(CeremonyError::Key(format!(
                "this is not {}'s signature of this transcript: sign it with the key of the plan",
                participant.name()
            )));
        }
        // Where no seal follows, nothing covers the last signature's own line: so all else about it
        // is prescribed, as a seal's is.
        let prescribed = self.kind.sealed_before().is_some();
        let (time, signature) = if prescribed {
            (self.time.clone(), low_s(signature)?)
        } else {
            (now(), *signature)
        };
        self.append_at(
            time,
            &Body::Signature(Signature {
                name: participant.name().to_owned(),
                role: role.name().to_owned(),
                key: participant.fingerprint(),
                signature: base64(&signature),
            }),
        )
    }

    /// What the HSM's audit key signs, once everyone has; where it is about to be destroyed, before
    /// that step. Nothing may be written between this and [`Transcript::seal`].
    ///
    /// # Errors
    /// [`CeremonyError::Transcript`] if it is not the time for it, or if it is sealed.
    pub fn seal_digest(&self) -> Result<[u8; 32], CeremonyError> {
        let early = self.kind.sealed_before().is_some();
        if self.closed.is_some() == early || self.sealed {
            return Err(self.refuse(
                "it can be sealed once, after everyone has signed, or before the audit key is destroyed",
            ));
        }
        Ok(seal_digest(&self.id, self.seq, &self.hash))
    }

    /// The last line: the audit key's signature of [`Transcript::seal_digest`], r || s.
    ///
    /// # Errors
    /// [`CeremonyError::Write`]; [`CeremonyError::Transcript`] if it is not closed, or is sealed;
    /// [`CeremonyError::Key`] for what is not a signature.
    pub fn seal(&mut self, signature: &[u8; 64]) -> Result<(), CeremonyError> {
        self.seal_digest()?;
        // s and n - s are both right; one of them is chosen, so that nothing on the last line can
        // be changed unseen.
        let signature = low_s(signature)?;
        // No signature covers this line's own time, so it is that of the line before.
        let time = self.time.clone();
        self.append_at(
            time,
            &Body::Seal(Seal {
                signature: base64(&signature),
            }),
        )?;
        self.sealed = true;
        self.ended = self.closed.is_some();
        Ok(())
    }

    fn not_ended(&self) -> Result<(), CeremonyError> {
        if self.ended {
            return Err(self.refuse("it is complete: nothing may follow"));
        }
        Ok(())
    }

    fn open_for(&self, what: &str) -> Result<(), CeremonyError> {
        if self.closed.is_some() {
            return Err(self.refuse(&format!("it is closed: no {what} line may follow")));
        }
        Ok(())
    }

    fn append(&mut self, body: &Body) -> Result<(), CeremonyError> {
        self.append_at(now(), body)
    }

    fn append_at(&mut self, time: String, body: &Body) -> Result<(), CeremonyError> {
        let seq = self.seq + 1;
        let mut bytes = Line::bytes(seq, &time, self.mode, &self.hash, body)
            .map_err(|error| CeremonyError::write(&self.path, error.into()))?;
        let hash = sha256(&bytes);
        bytes.push(b'\n');
        let written = self
            .file
            .write_all(&bytes)
            .and_then(|()| self.file.sync_all());
        if let Err(error) = written {
            // A part of the line may be there: away with it, or the next one would be glued to it.
            let _ = self.cut();
            return Err(CeremonyError::write(&self.path, error));
        }
        self.length += bytes.len() as u64;
        self.seq = seq;
        self.hash = hash;
        self.time = time;
        Ok(())
    }

    /// Leaves whole lines only.
    fn cut(&mut self) -> Result<(), CeremonyError> {
        self.file
            .set_len(self.length)
            .and_then(|()| self.file.seek(SeekFrom::End(0)).map(|_| ()))
            .and_then(|()| self.file.sync_all())
            .map_err(|error| CeremonyError::write(&self.path, error))
    }

    fn refuse(&self, problem: &str) -> CeremonyError {
        CeremonyError::Transcript {
            path: self.path.clone(),
            problem: problem.to_owned(),
        }
    }
}

/// Append-only, and for one process at a time.
fn open_file(path: &Path) -> Result<File, CeremonyError> {
    let file = files::open_with(path, OpenOptions::new().append(true))
        .map_err(|error| CeremonyError::write(path, error))?;
    lock_file(&file, path)?;
    Ok(file)
}

fn lock_file(file: &File, path: &Path) -> Result<(), CeremonyError> {
    match lock::take(file) {
        Ok(()) => Ok(()),
        Err(fs::TryLockError::WouldBlock) => Err(CeremonyError::Transcript {
            path: path.to_owned(),
            problem: "another process writes it: end that one first".to_owned(),
        }),
        Err(fs::TryLockError::Error(source)) => Err(CeremonyError::write(path, source)),
    }
}

/// Of the two values of s that verify, the smaller.
fn low_s(signature: &[u8; 64]) -> Result<[u8; 64], CeremonyError> {
    let signature = ecdsa::Signature::from_slice(signature)
        .map_err(|_| CeremonyError::Key("the signature is not one".to_owned()))?;
    Ok(signature.normalize_s().to_bytes().into())
}

fn now() -> String {
    format!("{:.3}", jiff::Timestamp::now())
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

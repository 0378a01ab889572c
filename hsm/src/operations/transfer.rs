//! A KEK's way from one master key to the next: out of its transfer blob, under the new keys,
//! without leaving the token.

use cryptoki::error::RvError;
use cryptoki::object::ObjectHandle;
use subtle::ConstantTimeEq;

use super::{Conn, Result};
use crate::error::HsmError;
use crate::fault::Fault;
use crate::keys::generation::{Generation, Trusted};
use crate::session_key;
use crate::types::{KeyUsage, MasterKind, TransferBlob, WrappedKey};

impl Conn {
    /// See [`crate::Hsm::rewrap`].
    pub(crate) fn rewrap(&mut self, key: &WrappedKey) -> Result<Option<WrappedKey>> {
        let to = self.keys.generations.current();
        let master = self.keys.master(key.master)?;
        if master.fingerprint() == key.master_fingerprint {
            return Ok(None);
        }
        let trusted = to.trusted.ok_or_else(|| {
            HsmError::Rotation(
                "no rotation is under way: the token holds no newer master key that the security officer has marked as trusted".to_owned(),
            )
        })?;
        match key.master {
            MasterKind::Hsm => self.move_inside(key, trusted).map(Some),
            MasterKind::Memory => self.move_through_memory(key).map(Some),
        }
    }

    fn move_inside(&mut self, key: &WrappedKey, trusted: Trusted) -> Result<WrappedKey> {
        let moved = self.unwrap_to_move(key)?;
        let wrapped = self.wrap_moved(key, moved, trusted);
        let destroyed = self.watched.session().destroy_object(moved);
        let wrapped = wrapped?;
        destroyed?;
        // What callers use now, from the old blob or made before it: the new one must be the same
        // key.
        let old = self.kek(key)?;
        let new = self.unwrap(&wrapped)?;
        let same = self.same(old, new, key.usage);
        self.destroy_quietly(new)?;
        if same? {
            Ok(wrapped)
        } else {
            Err(HsmError::NotMovable(
                "its transfer blob holds another key than its master blob".to_owned(),
            )
            .into())
        }
    }

    fn unwrap_to_move(&self, key: &WrappedKey) -> Result<ObjectHandle> {
        let Some(blob) = &key.transfer else {
            return Err(HsmError::NotMovable(
                "it was made without a transfer key: rotate it, re-encrypt what it protects, and trim its old versions".to_owned(),
            )
            .into());
        };
        let Some(transfer) = self.keys.generations.transfer(&blob.fingerprint) else {
            return Err(HsmError::NotMovable(
                "the transfer key that wraps it is not on the token: rotate it, re-encrypt what it protects, and trim its old versions"
                    .to_owned(),
            )
            .into());
        };
        session_key::unwrap_to_move(
            &self.watched,
            key.oaep,
            transfer.private,
            &blob.blob,
            key.usage,
        )
        .map_err(|fault| self.unwrapping_failed(fault))
    }

    /// Under the new master and the new transfer key, both by the public halves that the security
    /// officer has marked.
    fn wrap_moved(
        &self,
        key: &WrappedKey,
        moved: ObjectHandle,
        trusted: Trusted,
    ) -> Result<WrappedKey> {
        let to: &Generation = self.keys.generations.current();
        let oaep = self.abilities.profile.oaep;
        let wrap = |by: ObjectHandle| {
            let wrapped = self.watched.wrap_key(oaep, by, moved);
            wrapped.map_err(|error| match Fault::from(error) {
                Fault::Token(RvError::KeyNotWrappable, _) => HsmError::Rotation(
                    "the token wraps no KEK by the new master key: its public half is not marked as trusted".to_owned(),
                )
                .into(),
                other => other,
            })
        };
        let transfer = match &to.transfer {
            Some(transfer) => Some(TransferBlob {
                fingerprint: transfer.fingerprint(),
                blob: wrap(trusted.transfer)?,
            }),
            None => None,
        };
        Ok(WrappedKey {
            master_fingerprint: to.master.fingerprint(),
            oaep,
            blob: wrap(trusted.master)?,
            transfer,
            ..key.clone()
        })
    }

    /// The memory master decrypts into the host anyway; so the key goes through the host, for the
    /// length of a call.
    fn move_through_memory(&mut self, key: &WrappedKey) -> Result<WrappedKey> {
        let bytes = self.unwrap_to_memory(key)?;
        // As an AES key, whatever it is used for: the bytes are wrapped, not the type.
        let object = session_key::create(&self.watched, KeyUsage::Aead, &bytes, true)?;
        let oaep = self.abilities.profile.oaep;
        let wrap = || -> Result<WrappedKey> {
            let master = self.keys.master(MasterKind::Memory)?;
            let blob = self.watched.wrap_key(oaep, master.public, object)?;
            Ok(WrappedKey {
                master_fingerprint: master.fingerprint(),
                oaep,
                blob,
                ..key.clone()
            })
        };
        let wrapped = wrap();
        self.destroy_quietly(object)?;
        let wrapped = wrapped?;
        let again = self.unwrap_to_memory(&wrapped)?;
        if bool::from(again.ct_eq(bytes.as_slice())) {
            Ok(wrapped)
        } else {
            Err(HsmError::SelfTest("wrapping a key of memory residency".to_owned()).into())
        }
    }
}

'use strict';

// Drives a Strongroom server with node-vault: the functions that it has for transit, and its general read, write, list and delete for the rest.
// One line per check; the exit code is 1 if any failed. Settings come from the environment, see ../README.md.

const assert = require('node:assert/strict');
const { randomBytes, createHash } = require('node:crypto');
const { readFileSync } = require('node:fs');

for (const name of Object.keys(process.env).filter((name) => name.startsWith('VAULT_'))) {
  delete process.env[name]; // a developer's own shell must not decide what is tested
}

const settings = Object.fromEntries(
  ['ADDR', 'CA', 'CERT', 'KEY', 'MOUNT'].map((name) => {
    const value = process.env[`STRONGROOM_${name}`];
    if (!value) {
      console.error(`not set: STRONGROOM_${name}`);
      process.exit(2);
    }
    return [name.toLowerCase(), value];
  }),
);
const mount = settings.mount.replace(/^\/|\/$/g, '');
const certificate = { cert: readFileSync(settings.cert), key: readFileSync(settings.key), ca: readFileSync(settings.ca) };

const nodeVault = require('node-vault');
const vault = nodeVault({ endpoint: settings.addr, token: process.env.STRONGROOM_TOKEN, requestOptions: certificate });

const made = [];
const base64 = (text) => Buffer.from(text).toString('base64');
const newName = () => {
  made.push(`interop-node-${randomBytes(6).toString('hex')}`);
  return made.at(-1);
};
const write = (path, body = {}) => vault.write(`${mount}/${path}`, body);
const newKey = async (options = {}) => {
  const name = newName();
  await write(`keys/${name}`, options);
  return name;
};
const read = async (name) => (await vault.read(`${mount}/keys/${name}`)).data;
const encrypt = async (name, text, more = {}) => (await write(`encrypt/${name}`, { plaintext: base64(text), ...more })).data.ciphertext;
const decrypt = async (name, ciphertext, more = {}) =>
  Buffer.from((await write(`decrypt/${name}`, { ciphertext, ...more })).data.plaintext, 'base64').toString();

/** Fails unless the promise is refused with this status and, where given, these `errors`. */
async function refused(promise, status, ...errors) {
  const error = await promise.then(
    (answer) => assert.fail(`expected status ${status}, got an answer: ${JSON.stringify(answer)}`),
    (error) => error,
  );
  assert.ok(error.response, `expected status ${status}, got ${error}`);
  assert.equal(error.response.statusCode, status, JSON.stringify(error.response.body));
  if (errors.length > 0) {
    assert.deepEqual(error.response.body.errors, errors);
  }
}

const checks = {
  'node-vault\'s own transit functions': async () => {
    if (mount !== 'transit') {
      return `it knows no mount but "transit", this one is "${mount}"`;
    }
    const name = newName();
    await vault.transitCreateKey({ name, type: 'aes256-gcm96' });
    const { data } = await vault.transitReadKey({ name });
    assert.equal(data.name, name);
    assert.equal(data.type, 'aes256-gcm96');
    assert.ok((await vault.transitListKeys()).data.keys.includes(name));
    const sealed = (await vault.encryptData({ name, plaintext: base64('a secret') })).data.ciphertext;
    assert.match(sealed, /^vault:v1:[A-Za-z0-9+/]+=*$/);
    assert.equal((await vault.decryptData({ name, ciphertext: sealed })).data.plaintext, base64('a secret'));
    await write(`keys/${name}/rotate`);
    const fresh = (await vault.rewrapData({ name, ciphertext: sealed })).data;
    assert.equal(fresh.key_version, 2);
    assert.equal(await decrypt(name, fresh.ciphertext), 'a secret');
    await refused(vault.transitDeleteKey({ name }), 400, `error deleting policy ${name}: deletion is not allowed for this key`);
    await write(`keys/${name}/config`, { deletion_allowed: true });
    await vault.transitDeleteKey({ name });
    await refused(vault.transitReadKey({ name }), 404);
  },

  'create, read, list, rotate, configure, trim': async () => {
    const name = await newKey();
    for (let i = 0; i < 2; i += 1) {
      await write(`keys/${name}/rotate`);
    }
    await write(`keys/${name}/config`, { min_decryption_version: 2, min_encryption_version: 2 });
    await write(`keys/${name}/trim`, { min_available_version: 2 });
    const data = await read(name);
    assert.deepEqual(
      [data.latest_version, data.min_available_version, data.min_decryption_version, data.min_encryption_version],
      [3, 2, 2, 2],
    );
    assert.deepEqual(Object.keys(data.keys), ['2', '3']);
    assert.ok((await vault.list(`${mount}/keys`)).data.keys.includes(name));
    await refused(read(newName()), 404);
    await refused(write(`keys/${newName()}/rotate`), 400, 'key not found');
  },

  'encrypt and decrypt, with associated data, with a context': async () => {
    const name = await newKey();
    assert.equal(await decrypt(name, await encrypt(name, '')), '');
    assert.equal(await decrypt(name, await encrypt(name, 'Grüße')), 'Grüße');
    const bound = await encrypt(name, 'bound', { associated_data: base64('row 7') });
    assert.equal(await decrypt(name, bound, { associated_data: base64('row 7') }), 'bound');
    await refused(decrypt(name, bound), 400, 'cipher: message authentication failed');
    const derived = await newKey({ derived: true, convergent_encryption: true });
    const context = base64('tenant 1');
    const sealed = await encrypt(derived, 'x', { context });
    assert.equal(await encrypt(derived, 'x', { context }), sealed);
    assert.equal(await decrypt(derived, sealed, { context }), 'x');
    await refused(decrypt(derived, sealed, { context: base64('tenant 2') }), 400, 'cipher: message authentication failed');
  },

  '64 round trips at a time': async () => {
    const name = await newKey();
    await Promise.all(
      Array.from({ length: 64 }, async (_, i) => assert.equal(await decrypt(name, await encrypt(name, `trip ${i}`)), `trip ${i}`)),
    );
  },

  'a batch, and one with a failed item': async () => {
    const name = await newKey();
    const texts = Array.from({ length: 100 }, (_, i) => base64(`item ${i}`));
    const sealed = (await write(`encrypt/${name}`, { batch_input: texts.map((plaintext) => ({ plaintext })) })).data.batch_results;
    const items = sealed.map(({ ciphertext }) => ({ ciphertext }));
    const opened = (await write(`decrypt/${name}`, { batch_input: items })).data.batch_results;
    assert.deepEqual(opened.map(({ plaintext }) => plaintext), texts);
    const batch_input = [items[0], { ciphertext: 'bare' }];
    await refused(write(`decrypt/${name}`, { batch_input }), 400);
    const [good, bad] = (await write(`decrypt/${name}`, { batch_input, partial_failure_response_code: 200 })).data.batch_results;
    assert.equal(good.plaintext, texts[0]);
    assert.equal(bad.error, 'invalid ciphertext: no prefix');
  },

  'data keys, random bytes, hash, HMAC': async () => {
    const name = await newKey();
    for (const bits of [128, 256, 512]) {
      const { plaintext, ciphertext } = (await write(`datakey/plaintext/${name}`, { bits })).data;
      assert.equal(Buffer.from(plaintext, 'base64').length, bits / 8);
      assert.equal((await write(`decrypt/${name}`, { ciphertext })).data.plaintext, plaintext);
      assert.equal((await write(`datakey/wrapped/${name}`, { bits })).data.plaintext, undefined);
    }
    assert.equal(Buffer.from((await write('random/48')).data.random_bytes, 'base64').length, 48);
    const input = base64('a message');
    assert.equal((await write('hash/sha2-256', { input })).data.sum, createHash('sha256').update('a message').digest('hex'));
    const { hmac } = (await write(`hmac/${name}`, { input })).data;
    assert.equal((await write(`verify/${name}`, { input, hmac })).data.valid, true);
    assert.equal((await write(`verify/${name}`, { input: base64('another'), hmac })).data.valid, false);
  },

  'refusals': async () => {
    const name = await newKey();
    await refused(write(`encrypt/${name}`), 400, 'missing plaintext to encrypt');
    await refused(write(`encrypt/${name}`, { plaintext: '!' }), 400, 'illegal base64 data at input byte 0');
    await refused(decrypt(name, 'vault:v2:AAAA'), 400, 'invalid ciphertext: version is too new');
    await refused(decrypt(newName(), 'vault:v1:AAAA'), 400, 'encryption key not found');
    await refused(write('no-such-path'), 404);
    await refused(vault.delete(`${mount}/encrypt/${name}`), 405);
    await refused(vault.update(`${mount}/keys/${name}`, {}), 405);
  },

  'without a client certificate': async () => {
    const stranger = nodeVault({ endpoint: settings.addr, token: process.env.STRONGROOM_TOKEN, requestOptions: { ca: certificate.ca } });
    const error = await stranger.read(`${mount}/keys/any`).then(
      () => assert.fail('expected the TLS handshake to fail, got an answer'),
      (error) => error,
    );
    assert.equal(error.response, undefined, `expected the TLS handshake to fail, got an HTTP answer: ${JSON.stringify(error.response?.body)}`);
  },

  'health and seal status': async () => {
    const health = await vault.health();
    assert.deepEqual([health.initialized, health.sealed, health.standby], [true, false, false]);
    const status = await vault.status();
    assert.deepEqual([status.initialized, status.sealed], [true, false]);
  },

  'token: look up and renew': async () => {
    if (!process.env.STRONGROOM_TOKEN) {
      return 'STRONGROOM_TOKEN is not set';
    }
    assert.equal((await vault.tokenLookupSelf()).data.id, process.env.STRONGROOM_TOKEN);
    assert.equal((await vault.tokenRenewSelf()).auth.client_token, process.env.STRONGROOM_TOKEN);
  },
};

async function main() {
  let failed = 0;
  for (const [name, check] of Object.entries(checks)) {
    try {
      const reason = await check();
      console.log(reason ? `skip  ${name}: ${reason}` : `ok    ${name}`);
    } catch (error) {
      failed += 1;
      console.log(`FAIL  ${name}: ${error.message}`);
    }
  }
  for (const name of made) {
    await write(`keys/${name}/config`, { deletion_allowed: true })
      .then(() => vault.delete(`${mount}/keys/${name}`))
      .catch(() => {}); // deleted by its check, or never made
  }
  console.log(`${Object.keys(checks).length} checks, ${failed} failed`);
  process.exit(failed === 0 ? 0 : 1);
}

main();

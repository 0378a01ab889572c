package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"github.com/hashicorp/go-kms-wrapping/wrappers/transit/v2"
	"github.com/hashicorp/vault/api"
)

const (
	goroutines         = 64
	tripsPerGoroutine  = 8
	rotationsMeanwhile = 3
)

// check runs every check, also after one has failed.
func check(s settings) error {
	checks := []struct {
		name string
		run  func(context.Context, settings) error
		skip string
	}{
		{"start by option functions, certificate only", startByOptions, when(s.needsToken, "this server wants a token")},
		{"start by the seal stanza, certificate only", startByStanza, when(s.needsToken, "this server wants a token")},
		{"start with a token, which the client tries to renew first", startWithToken, when(s.token == "", "STRONGROOM_TOKEN is not set")},
		{"start without a client certificate is refused", startWithoutCertificate, ""},
		{"start with a key that is not there is refused", startWithoutKey, when(s.needsToken, "a Vault makes the key")},
		{"round trips of 0 B to 64 KiB", roundTrips, ""},
		{"two seals of one value differ", sealsDiffer, ""},
		{"an altered ciphertext is refused", alteredIsRefused, ""},
		{"a rotation reaches the client, old values still open", rotationIsSeen, ""},
		{fmt.Sprintf("%d goroutines while the key rotates", goroutines), concurrent, ""},
	}
	failed := 0
	for _, c := range checks {
		if c.skip != "" {
			fmt.Printf("skip  %s: %s\n", c.name, c.skip)
		} else if err := c.run(context.Background(), s); err != nil {
			failed++
			fmt.Printf("FAIL  %s: %v\n", c.name, err)
		} else {
			fmt.Printf("ok    %s\n", c.name)
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d checks failed", failed, len(checks))
	}
	return nil
}

func when(condition bool, reason string) string {
	if condition {
		return reason
	}
	return ""
}

func startByOptions(ctx context.Context, s settings) error {
	return starts(ctx, s, s.options(""))
}

func startByStanza(ctx context.Context, s settings) error {
	return starts(ctx, s, s.stanza(""))
}

func startWithToken(ctx context.Context, s settings) error {
	return starts(ctx, s, s.stanza(s.token))
}

func starts(ctx context.Context, s settings, options []wrapping.Option) error {
	w, config, err := newWrapper(ctx, options)
	if err != nil {
		return err
	}
	defer w.Finalize(ctx)
	kind, err := w.Type(ctx)
	if err != nil || kind != wrapping.WrapperTypeTransit {
		return fmt.Errorf("type: expected %q, got %q, %v", wrapping.WrapperTypeTransit, kind, err)
	}
	for name, expected := range map[string]string{"address": s.address, "mount_path": s.mount, "key_name": s.keyName} {
		if got := config.Metadata[name]; got != expected {
			return fmt.Errorf("metadata %s: expected %q, got %q", name, expected, got)
		}
	}
	if _, err := version(ctx, w); err != nil {
		return err
	}
	return trip(ctx, w, []byte("a root key"))
}

func startWithoutCertificate(ctx context.Context, s settings) error {
	w, _, err := newWrapper(ctx, []wrapping.Option{
		transit.WithAddress(s.address),
		transit.WithTlsCaCert(s.ca),
		transit.WithMountPath(s.mount),
		transit.WithKeyName(s.keyName),
		transit.WithToken(s.token),
	})
	if err == nil {
		w.Finalize(ctx)
		return errors.New("expected the TLS handshake to fail, got a working client")
	}
	var answer *api.ResponseError
	if errors.As(err, &answer) {
		return fmt.Errorf("expected the TLS handshake to fail, got HTTP %d: %v", answer.StatusCode, answer.Errors)
	}
	return nil
}

func startWithoutKey(ctx context.Context, s settings) error {
	absent := s
	absent.keyName = "no-such-key-" + strings.ToLower(rand.Text())
	w, _, err := newWrapper(ctx, absent.options(s.usualToken()))
	if err == nil {
		w.Finalize(ctx)
		return errors.New("expected an error, got a working client")
	}
	var answer *api.ResponseError
	if !errors.As(err, &answer) || (answer.StatusCode != 400 && answer.StatusCode != 403) {
		return fmt.Errorf("expected HTTP 400 (no such key) or 403 (not allowed), got %v", err)
	}
	return nil
}

func roundTrips(ctx context.Context, s settings) error {
	w, _, err := newWrapper(ctx, s.options(s.usualToken()))
	if err != nil {
		return err
	}
	defer w.Finalize(ctx)
	for _, size := range []int{0, 1, 12, 15, 16, 17, 32, 33, 255, 4096, 65536} {
		value := make([]byte, size)
		if _, err := rand.Read(value); err != nil {
			return err
		}
		if err := trip(ctx, w, value); err != nil {
			return fmt.Errorf("%d bytes: %w", size, err)
		}
	}
	return nil
}

func sealsDiffer(ctx context.Context, s settings) error {
	w, _, err := newWrapper(ctx, s.options(s.usualToken()))
	if err != nil {
		return err
	}
	defer w.Finalize(ctx)
	one, err := w.Encrypt(ctx, []byte("the same value"))
	if err != nil {
		return err
	}
	other, err := w.Encrypt(ctx, []byte("the same value"))
	if err != nil {
		return err
	}
	if bytes.Equal(one.Ciphertext, other.Ciphertext) {
		return fmt.Errorf("expected two ciphertexts, got %s twice", one.Ciphertext)
	}
	return nil
}

func alteredIsRefused(ctx context.Context, s settings) error {
	w, _, err := newWrapper(ctx, s.options(s.usualToken()))
	if err != nil {
		return err
	}
	defer w.Finalize(ctx)
	blob, err := w.Encrypt(ctx, []byte("a root key of 32 bytes, or so..."))
	if err != nil {
		return err
	}
	whole := string(blob.Ciphertext)
	parts := strings.SplitN(whole, ":", 3)
	raw, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil {
		return fmt.Errorf("the third part of %q is not base64: %w", whole, err)
	}
	latest, err := strconv.Atoi(strings.TrimPrefix(parts[1], "v"))
	if err != nil {
		return fmt.Errorf("the version in %q: %w", whole, err)
	}
	rebuilt := func(raw []byte) string {
		return parts[0] + ":" + parts[1] + ":" + base64.StdEncoding.EncodeToString(raw)
	}
	flipped := func(at int) string {
		altered := bytes.Clone(raw)
		altered[at] ^= 1
		return rebuilt(altered)
	}
	const authentication = "cipher: message authentication failed"
	for _, c := range []struct{ name, ciphertext, message string }{
		{"a flipped bit in the nonce", flipped(0), authentication},
		{"a flipped bit in the text", flipped(12), authentication},
		{"a flipped bit in the tag", flipped(len(raw) - 1), authentication},
		{"the last byte cut off", rebuilt(raw[:len(raw)-1]), authentication},
		{"eleven bytes", rebuilt(raw[:11]), "invalid ciphertext length"},
		{"no prefix", parts[2], "invalid ciphertext: no prefix"},
		{"no version", "vault:v" + parts[2], "invalid ciphertext: wrong number of fields"},
		{"a version that is no number", "vault:vx:" + parts[2], "invalid ciphertext: version number could not be decoded"},
		{"a version that is not there yet", fmt.Sprintf("vault:v%d:%s", latest+1, parts[2]), "invalid ciphertext: version is too new"},
		{"no base64", parts[0] + ":" + parts[1] + ":%%%", "invalid ciphertext: could not decode base64"},
		{"nothing", "", "missing ciphertext to decrypt"},
	} {
		opened, err := w.Decrypt(ctx, &wrapping.BlobInfo{Ciphertext: []byte(c.ciphertext)})
		var answer *api.ResponseError
		switch {
		case err == nil:
			return fmt.Errorf("%s: expected an error, got %q", c.name, opened)
		case !errors.As(err, &answer):
			return fmt.Errorf("%s: expected HTTP 400, got %v", c.name, err)
		case answer.StatusCode != 400 || len(answer.Errors) != 1 || answer.Errors[0] != c.message:
			return fmt.Errorf("%s: expected HTTP 400 [%s], got %d %v", c.name, c.message, answer.StatusCode, answer.Errors)
		}
	}
	return trip(ctx, w, []byte("and the key still works"))
}

func rotationIsSeen(ctx context.Context, s settings) error {
	w, _, err := newWrapper(ctx, s.options(s.usualToken()))
	if err != nil {
		return err
	}
	defer w.Finalize(ctx)
	old, err := w.Encrypt(ctx, []byte("sealed before the rotation"))
	if err != nil {
		return err
	}
	before, err := version(ctx, w)
	if err != nil {
		return err
	}
	if err := rotate(ctx, w, s); err != nil {
		return err
	}
	if now, err := version(ctx, w); err != nil || now != before {
		return fmt.Errorf("the client can't have heard of the rotation yet: expected version %d, got %d, %v", before, now, err)
	}
	fresh, err := w.Encrypt(ctx, []byte("sealed after it"))
	if err != nil {
		return err
	}
	after, err := version(ctx, w)
	if err != nil {
		return err
	}
	if after != before+1 {
		return fmt.Errorf("expected key version %d after the rotation, got %d", before+1, after)
	}
	if expected := "v" + strconv.Itoa(after); fresh.KeyInfo.KeyId != expected {
		return fmt.Errorf("expected the value's key id to be %q, got %q", expected, fresh.KeyInfo.KeyId)
	}
	opened, err := w.Decrypt(ctx, old)
	if err != nil || string(opened) != "sealed before the rotation" {
		return fmt.Errorf("expected the old value back, got %q, %v", opened, err)
	}
	opened, err = w.Decrypt(ctx, fresh)
	if err != nil || string(opened) != "sealed after it" {
		return fmt.Errorf("expected the new value back, got %q, %v", opened, err)
	}
	return nil
}

func concurrent(ctx context.Context, s settings) error {
	w, _, err := newWrapper(ctx, s.options(s.usualToken()))
	if err != nil {
		return err
	}
	defer w.Finalize(ctx)
	before, err := version(ctx, w)
	if err != nil {
		return err
	}
	failures := make(chan error, goroutines+1)
	var all sync.WaitGroup
	for g := range goroutines {
		all.Add(1)
		go func() {
			defer all.Done()
			for i := range tripsPerGoroutine {
				if err := trip(ctx, w, fmt.Appendf(nil, "goroutine %d, trip %d", g, i)); err != nil {
					failures <- fmt.Errorf("goroutine %d, trip %d: %w", g, i, err)
					return
				}
			}
		}()
	}
	all.Add(1)
	go func() {
		defer all.Done()
		for range rotationsMeanwhile {
			if err := rotate(ctx, w, s); err != nil {
				failures <- err
				return
			}
		}
	}()
	all.Wait()
	close(failures)
	var found []error
	for err := range failures {
		found = append(found, err)
	}
	if len(found) > 0 {
		return fmt.Errorf("%d goroutines failed, the first with: %w", len(found), found[0])
	}
	if _, err := w.Encrypt(ctx, []byte("a")); err != nil {
		return err
	}
	after, err := version(ctx, w)
	if err != nil {
		return err
	}
	if after != before+rotationsMeanwhile {
		return fmt.Errorf("expected key version %d after %d rotations, got %d", before+rotationsMeanwhile, rotationsMeanwhile, after)
	}
	return nil
}

// trip seals and unseals one value.
func trip(ctx context.Context, w *transit.Wrapper, value []byte) error {
	blob, err := w.Encrypt(ctx, value)
	if err != nil {
		return fmt.Errorf("sealing: %w", err)
	}
	opened, err := w.Decrypt(ctx, blob)
	if err != nil {
		return fmt.Errorf("unsealing: %w", err)
	}
	if !bytes.Equal(opened, value) {
		return fmt.Errorf("expected %.40q back, got %.40q", value, opened)
	}
	return nil
}

// version is the key version that the wrapper saw last: its key id without the "v".
func version(ctx context.Context, w *transit.Wrapper) (int, error) {
	id, err := w.KeyId(ctx)
	if err != nil {
		return 0, err
	}
	number, found := strings.CutPrefix(id, "v")
	v, err := strconv.Atoi(number)
	if !found || err != nil || v < 1 {
		return 0, fmt.Errorf("expected a key id like \"v1\", got %q", id)
	}
	return v, nil
}

func rotate(ctx context.Context, w *transit.Wrapper, s settings) error {
	client, err := apiClient(w)
	if err != nil {
		return err
	}
	if _, err := client.Logical().WriteWithContext(ctx, s.mount+"/keys/"+s.keyName+"/rotate", nil); err != nil {
		return fmt.Errorf("rotating: %w", err)
	}
	return nil
}

// Command seal drives a Strongroom server with the transit seal client that
// Vault itself links: github.com/hashicorp/go-kms-wrapping/wrappers/transit/v2.
//
//	seal check      every check, one line each; exit code 1 if any failed
//	seal roundtrip  seals and unseals one value and says what happened
//	seal keep       seals standard input, and prints the ciphertext to keep
//	seal open       unseals such a ciphertext from standard input
//
// The server and the credentials come from the environment: see settings.
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"time"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"github.com/hashicorp/go-kms-wrapping/wrappers/transit/v2"
	"github.com/hashicorp/vault/api"
)

const wrapperModule = "github.com/hashicorp/go-kms-wrapping/wrappers/transit/v2"

func main() {
	command := ""
	if len(os.Args) == 2 {
		command = os.Args[1]
	}
	run := map[string]func(settings) error{"check": check, "roundtrip": roundtrip, "keep": keep, "open": open}[command]
	if run == nil {
		fmt.Fprintln(os.Stderr, "usage: seal check|roundtrip|keep|open")
		os.Exit(2)
	}
	s, err := readSettings()
	if err == nil {
		err = run(s)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "seal:", err)
		os.Exit(1)
	}
}

// settings says which server to talk to and who is talking.
type settings struct {
	address, ca, cert, key string
	mount, keyName         string
	token                  string // empty: none is sent
	needsToken             bool   // the server is a Vault, which knows nobody by certificate alone
}

func readSettings() (settings, error) {
	// The Vault API client picks up VAULT_* by itself, the wrapper TRANSIT_* and
	// VAULT_TRANSIT_*: a developer's own shell must not decide what is tested.
	for _, name := range []string{
		"VAULT_ADDR", "VAULT_AGENT_ADDR", "VAULT_CACERT", "VAULT_CACERT_BYTES", "VAULT_CAPATH", "VAULT_CLIENT_CERT", "VAULT_CLIENT_KEY",
		"VAULT_NAMESPACE", "VAULT_PROXY_ADDR", "VAULT_HTTP_PROXY", "VAULT_SKIP_VERIFY", "VAULT_TLS_SERVER_NAME", "VAULT_TOKEN",
		transit.EnvTransitWrapperMountPath, transit.EnvVaultTransitSealMountPath,
		transit.EnvTransitWrapperKeyName, transit.EnvVaultTransitSealKeyName,
		transit.EnvTransitWrapperDisableRenewal, transit.EnvVaultTransitSealDisableRenewal,
	} {
		if err := os.Unsetenv(name); err != nil {
			return settings{}, err
		}
	}
	s := settings{
		token:      os.Getenv("STRONGROOM_TOKEN"),
		needsToken: os.Getenv("STRONGROOM_NEEDS_TOKEN") == "1",
	}
	for name, field := range map[string]*string{
		"STRONGROOM_ADDR": &s.address, "STRONGROOM_CA": &s.ca, "STRONGROOM_CERT": &s.cert, "STRONGROOM_KEY": &s.key,
		"STRONGROOM_MOUNT": &s.mount, "STRONGROOM_KEY_NAME": &s.keyName,
	} {
		if *field = os.Getenv(name); *field == "" {
			return settings{}, fmt.Errorf("%s is not set", name)
		}
	}
	if s.needsToken && s.token == "" {
		return settings{}, fmt.Errorf("STRONGROOM_NEEDS_TOKEN=1 without STRONGROOM_TOKEN")
	}
	return s, nil
}

// options configures a wrapper the way a Go program does: by option functions.
func (s settings) options(token string) []wrapping.Option {
	return []wrapping.Option{
		transit.WithAddress(s.address),
		transit.WithTlsCaCert(s.ca),
		transit.WithTlsClientCert(s.cert),
		transit.WithTlsClientKey(s.key),
		transit.WithMountPath(s.mount),
		transit.WithKeyName(s.keyName),
		transit.WithToken(token),
	}
}

// stanza configures a wrapper the way Vault does: by the seal stanza's own lines.
func (s settings) stanza(token string) []wrapping.Option {
	return []wrapping.Option{wrapping.WithConfigMap(map[string]string{
		"address":         s.address,
		"tls_ca_cert":     s.ca,
		"tls_client_cert": s.cert,
		"tls_client_key":  s.key,
		"mount_path":      s.mount,
		"key_name":        s.keyName,
		"token":           token,
	})}
}

// usualToken is what a wrapper is given where the token is not what is tested.
func (s settings) usualToken() string {
	if s.needsToken {
		return s.token
	}
	return ""
}

// newWrapper makes a wrapper and lets it do its test encryption, as Vault does at start.
func newWrapper(ctx context.Context, options []wrapping.Option) (*transit.Wrapper, *wrapping.WrapperConfig, error) {
	w := transit.NewWrapper()
	config, err := w.SetConfig(ctx, options...)
	return w, config, err
}

// apiClient is the Vault API client inside the wrapper.
func apiClient(w *transit.Wrapper) (*api.Client, error) {
	client, ok := w.GetClient().(*transit.TransitClient)
	if !ok {
		return nil, fmt.Errorf("the wrapper's client is a %T, not a *transit.TransitClient", w.GetClient())
	}
	return client.GetApiClient(), nil
}

func roundtrip(s settings) error {
	ctx := context.Background()
	token, said := s.usualToken(), "no token"
	if token != "" {
		said = "a token"
	}
	w, _, err := newWrapper(ctx, s.stanza(token))
	if err != nil {
		return fmt.Errorf("the seal client could not start: %w", err)
	}
	defer w.Finalize(ctx)

	secret := make([]byte, 32)
	if _, err := rand.Read(secret); err != nil {
		return err
	}
	start := time.Now()
	blob, err := w.Encrypt(ctx, secret)
	if err != nil {
		return fmt.Errorf("sealing: %w", err)
	}
	sealing := time.Since(start)
	start = time.Now()
	opened, err := w.Decrypt(ctx, blob)
	if err != nil {
		return fmt.Errorf("unsealing: %w", err)
	}
	unsealing := time.Since(start)
	if !bytes.Equal(opened, secret) {
		return fmt.Errorf("what came back is not what was sealed")
	}

	fmt.Printf("seal client  %s %s, the one inside Vault\n", wrapperModule, wrapperVersion())
	fmt.Printf("server       %s, mount %s, key %s; a client certificate and %s\n", s.address, s.mount, s.keyName, said)
	fmt.Printf("sealed       32 random bytes with key version %s in %s: %.28s… (%d characters)\n",
		blob.KeyInfo.KeyId, sealing.Round(10*time.Microsecond), blob.Ciphertext, len(blob.Ciphertext))
	fmt.Printf("unsealed     the same 32 bytes in %s\n", unsealing.Round(10*time.Microsecond))
	return nil
}

func keep(s settings) error {
	return filter(s, func(ctx context.Context, w *transit.Wrapper, plain []byte) ([]byte, error) {
		blob, err := w.Encrypt(ctx, plain)
		if err != nil {
			return nil, fmt.Errorf("sealing: %w", err)
		}
		return blob.Ciphertext, nil
	})
}

func open(s settings) error {
	return filter(s, func(ctx context.Context, w *transit.Wrapper, kept []byte) ([]byte, error) {
		return w.Decrypt(ctx, &wrapping.BlobInfo{Ciphertext: kept})
	})
}

// filter is one operation from standard input to standard output.
func filter(s settings, operation func(context.Context, *transit.Wrapper, []byte) ([]byte, error)) error {
	ctx := context.Background()
	input, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	w, _, err := newWrapper(ctx, s.stanza(s.usualToken()))
	if err != nil {
		return fmt.Errorf("the seal client could not start: %w", err)
	}
	defer w.Finalize(ctx)
	output, err := operation(ctx, w, input)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(output)
	return err
}

// wrapperVersion is the version of the seal client in this binary.
func wrapperVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, module := range info.Deps {
			if module.Path == wrapperModule {
				return module.Version
			}
		}
	}
	return "(unknown version)"
}

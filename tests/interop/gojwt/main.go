// Verifies tokens, one a line on standard input, with golang-jwt, as a service would that keeps the public keys by their cache headers alone.
//
// A line is "<seconds to wait> <token>". Keys are fetched when there are none and when those there are have reached the max-age that came
// with them, and at no other time: a token of an unknown key is a rejection. Prints "verified <n>"; exit code 1 if any was rejected.
package main

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

var maxAge = regexp.MustCompile(`max-age=(\d+)`)

type keys struct {
	lock   sync.Mutex
	client *http.Client
	until  time.Time
	byID   map[string]any
}

func main() {
	set := &keys{client: client()}
	parser := jwt.NewParser(jwt.WithValidMethods([]string{"ES256", "PS256", "EdDSA"}), jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithAudience("shop"), jwt.WithLeeway(time.Second))
	var lock sync.Mutex
	var wait sync.WaitGroup
	verified, rejected := 0, 0
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		after, token, _ := strings.Cut(lines.Text(), " ")
		seconds, err := strconv.ParseFloat(after, 64)
		check(err)
		wait.Add(1)
		time.AfterFunc(time.Duration(seconds*float64(time.Second)), func() {
			defer wait.Done()
			_, err := parser.Parse(token, set.find)
			lock.Lock()
			defer lock.Unlock()
			if err != nil {
				rejected++
				fmt.Fprintf(os.Stderr, "rejected: %v: %s\n", err, token)
			} else {
				verified++
			}
		})
	}
	check(lines.Err())
	wait.Wait()
	fmt.Printf("verified %d, rejected %d\n", verified, rejected)
	if rejected > 0 {
		os.Exit(1)
	}
}

func client() *http.Client {
	pem, err := os.ReadFile(os.Getenv("STRONGROOM_CA"))
	check(err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	own, err := tls.LoadX509KeyPair(os.Getenv("STRONGROOM_CERT"), os.Getenv("STRONGROOM_KEY"))
	check(err)
	config := &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{own}, MinVersion: tls.VersionTLS13}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: config}, Timeout: 10 * time.Second}
}

func (k *keys) find(token *jwt.Token) (any, error) {
	k.lock.Lock()
	defer k.lock.Unlock()
	if !time.Now().Before(k.until) {
		if err := k.fetch(); err != nil {
			return nil, err
		}
	}
	key, known := k.byID[fmt.Sprint(token.Header["kid"])]
	if !known {
		return nil, fmt.Errorf("no key %v among %d", token.Header["kid"], len(k.byID))
	}
	return key, nil
}

func (k *keys) fetch() error {
	answer, err := k.client.Get(os.Getenv("STRONGROOM_ADDR") + "/.well-known/jwks.json")
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	var set struct {
		Keys []struct{ Kty, Kid, Crv, X, Y, N, E string }
	}
	if err := json.NewDecoder(answer.Body).Decode(&set); err != nil {
		return err
	}
	seconds, err := strconv.Atoi(maxAge.FindStringSubmatch(answer.Header.Get("Cache-Control"))[1])
	if err != nil {
		return err
	}
	k.until, k.byID = time.Now().Add(time.Duration(seconds)*time.Second), map[string]any{}
	for _, key := range set.Keys {
		switch key.Kty {
		case "EC":
			k.byID[key.Kid] = &ecdsa.PublicKey{Curve: elliptic.P256(), X: number(key.X), Y: number(key.Y)}
		case "RSA":
			k.byID[key.Kid] = &rsa.PublicKey{N: number(key.N), E: int(number(key.E).Int64())}
		case "OKP":
			k.byID[key.Kid] = ed25519.PublicKey(bytes(key.X))
		}
	}
	return nil
}

func bytes(text string) []byte {
	decoded, err := base64.RawURLEncoding.DecodeString(text)
	check(err)
	return decoded
}

func number(text string) *big.Int { return new(big.Int).SetBytes(bytes(text)) }

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
}

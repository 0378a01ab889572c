// Vault 1.14 links a library (gosnowflake) that parses a built-in root
// certificate with a negative serial number when it is loaded, which Go
// refuses since 1.23.
//
//go:debug x509negativeserial=1

// Command vault is a real Vault: the server and the command line of
// github.com/hashicorp/vault, built from the Go module proxy. Only the web
// interface is missing, which the module does not contain.
package main

import (
	"os"

	"github.com/hashicorp/vault/command"
)

func main() {
	os.Exit(command.Run(os.Args[1:]))
}

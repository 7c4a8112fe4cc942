package gateway

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// TokenPrefix begins every token that NewToken makes, so that whoever looks for secrets in files, commits and
// logs finds one.
const TokenPrefix = "gmt_"

// minToken is how many characters a token has, at least, for which we may say that nobody guesses it: 22 of base64
// are 128 random bits, and 22 hexadecimal digits still 88.
const minToken = 22

// guessable reports whether a token is so short that trying many is worth it.
func guessable(token string) bool { return len(token) < minToken }

// tokenHash is what a gateway keeps of a token. SHA-256 is enough, and a slow hash as for passwords would be
// wrong: 32 random bytes cannot be found by trying, however fast the trying is, and the hash is made for
// each request, also of those who have no token.
type tokenHash [sha256.Size]byte

func hashOf(token string) tokenHash { return sha256.Sum256([]byte(token)) }

// NewToken makes a token of 32 random bytes. Only its hash goes into the configuration.
func NewToken() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails: it ends the process first
	return TokenPrefix + base64.RawURLEncoding.EncodeToString(b)
}

// HashToken is what gateway.auth.tokens[].sha256 says of a token. One that could be guessed is refused: there is no
// limit for the tries of who holds the hash.
func HashToken(token string) (string, error) {
	switch {
	case strings.ContainsFunc(token, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }):
		return "", errors.New("the token holds white space, which no HTTP header can carry")
	case guessable(token):
		return "", fmt.Errorf("the token has %d characters, want at least %d random ones: a shorter one can be found from its hash by trying", len(token), minToken)
	case len(token) > maxToken:
		return "", fmt.Errorf("the token has %d characters, at most %d are looked at", len(token), maxToken)
	}
	h := hashOf(token)
	return hex.EncodeToString(h[:]), nil
}

// A role is what a caller may do. Each role may do what the ones before it may.
type role int

const (
	// roleNobody is the zero value, so that a route that forgot its role lets nobody in.
	roleNobody role = iota
	// roleOpen is a caller without a token, and a route that needs none.
	roleOpen
	roleRead
	roleSend
	roleOperate
)

// Roles are the names of the roles a token can have, the least first.
func Roles() []string { return []string{"read", "send", "operate"} }

func roleNamed(name string) role {
	if i := slices.Index(Roles(), name); i >= 0 {
		return roleRead + role(i)
	}
	return roleNobody
}

func (r role) String() string {
	if r >= roleRead && r <= roleOperate {
		return Roles()[r-roleRead]
	}
	return "none"
}

// may reports whether r is enough where need is needed.
func (r role) may(need role) bool { return need >= roleOpen && r >= need }

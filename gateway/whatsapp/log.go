package whatsapp

import (
	"fmt"
	"regexp"
	"strings"
	"sync"

	"github.com/hashicorp/go-hclog"
	signallog "go.mau.fi/libsignal/logger"
	walog "go.mau.fi/whatsmeow/util/log"
)

// logger hands on what the library says that a person should hear. Its debug log shows whole frames, and here and there a
// line shows one too: those are cut.
//
// A frame that cannot be decrypted is only logged by the library; but none can be read after it, so unreadable ends the connection.
// Should the line read otherwise one day, the next ping ends it.
type logger struct {
	to         hclog.Logger
	unreadable func()
}

func (l logger) Errorf(msg string, args ...any) { l.to.Warn("WhatsApp", "says", clean(msg, args)) }
func (l logger) Warnf(msg string, args ...any) {
	l.to.Debug("WhatsApp", "says", clean(msg, args))
	if strings.HasPrefix(msg, "Failed to decrypt frame") {
		l.unreadable()
	}
}
func (l logger) Infof(string, ...any)    {}
func (l logger) Debugf(string, ...any)   {}
func (l logger) Sub(string) walog.Logger { return l }

// encoded is what a key, a ciphertext or a pairing code looks like. A message's id is shorter.
var encoded = regexp.MustCompile(`[A-Za-z0-9+/=_-]{40,}`)

// clean makes one line of it, without anything of a frame and without what may be a key.
func clean(msg string, args []any) string {
	s := fmt.Sprintf(msg, args...)
	s, _, _ = strings.Cut(s, "\n")
	if i := strings.IndexByte(s, '<'); i >= 0 {
		s = s[:i] + "(a frame)"
	}
	return encoded.ReplaceAllString(s, "(not shown)")
}

// plain is an error of the library without anything of a frame.
func plain(err error) string { return clean("%v", []any{err}) }

// silence is for the Signal library, which prints to the standard output until it is told otherwise.
type silence struct{}

func (silence) Debug(string, string)   {}
func (silence) Info(string, string)    {}
func (silence) Warning(string, string) {}
func (silence) Error(string, string)   {}
func (silence) Configure(string)       {}

var quiet = sync.OnceFunc(func() {
	var l signallog.Loggable = silence{}
	signallog.Setup(&l)
})

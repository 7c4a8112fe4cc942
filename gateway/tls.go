package gateway

import (
	"crypto/tls"
	"fmt"
	"os"
	"sync"

	"github.com/hashicorp/go-hclog"
)

// certificate is the port's certificate. Each handshake looks whether its files have changed, so that a renewed one
// is taken up without a restart or a signal. What cannot be read, or does not fit together (half written), leaves
// the one before in use.
type certificate struct {
	log hclog.Logger

	mu        sync.Mutex
	cert, key string
	// now was made of the files as seen; tried is what was looked at last.
	now         *tls.Certificate
	seen, tried [2]os.FileInfo
}

// newCertificate reads the files; nil is no TLS.
func newCertificate(c TLSConfig, log hclog.Logger) (*certificate, error) {
	if !c.Enabled {
		return nil, nil
	}
	k := &certificate{log: log, cert: c.CertPath, key: c.KeyPath}
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.readLocked(k.look()); err != nil {
		return nil, fmt.Errorf("gateway.tls: %w", err)
	}
	return k, nil
}

// config is what a listener needs.
func (k *certificate) config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return k.current(), nil
		},
	}
}

func (k *certificate) current() *tls.Certificate {
	k.mu.Lock()
	defer k.mu.Unlock()
	files := k.look()
	if same(files, k.seen) || same(files, k.tried) {
		return k.now
	}
	if err := k.readLocked(files); err != nil {
		k.log.Warn("the new certificate cannot be used; the old one stays", "error", err)
	} else {
		k.log.Info("took up a new certificate", "file", k.cert, "until", k.now.Leaf.NotAfter)
	}
	return k.now
}

func (k *certificate) look() (files [2]os.FileInfo) {
	files[0], _ = os.Stat(k.cert)
	files[1], _ = os.Stat(k.key)
	return files
}

func (k *certificate) readLocked(files [2]os.FileInfo) error {
	k.tried = files
	c, err := tls.LoadX509KeyPair(k.cert, k.key)
	if err != nil {
		return err
	}
	k.now, k.seen = &c, files
	return nil
}

// same reports whether nothing has happened to two files.
func same(a, b [2]os.FileInfo) bool {
	for i := range a {
		if a[i] == nil || b[i] == nil {
			if a[i] != b[i] {
				return false
			}
			continue
		}
		if !os.SameFile(a[i], b[i]) || !a[i].ModTime().Equal(b[i].ModTime()) || a[i].Size() != b[i].Size() {
			return false
		}
	}
	return true
}

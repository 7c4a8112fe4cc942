package whatsapp

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.mau.fi/whatsmeow"

	"github.com/gatemesh/gatemesh/gateway"
)

// TestVendors is the environment variable that allows endpoint and certKey.
const TestVendors = "GATEMESH_TEST_VENDORS"

const maxText = 4096 // characters: longer ones WhatsApp's clients fold away

// Factory makes the adapter of a WhatsApp account.
func Factory() gateway.ChannelFactory {
	return gateway.ChannelFactory{New: newChannel, Limits: gateway.ChannelLimits{Text: maxText}, NeedsVault: true}
}

// settings is what this adapter reads of the account's block. Other keys are other people's.
type settings struct {
	// Endpoint and CertKey lead to a fake of WhatsApp, for tests: see [TestVendors].
	Endpoint string `json:"endpoint"`
	CertKey  string `json:"certKey"`
	// ResendSameID lets Find send a post of unknown outcome again, under the same id.
	ResendSameID bool `json:"resendSameId"`
}

// channel is one WhatsApp account under one term.
type channel struct {
	log      hclog.Logger
	creds    *credentials
	base     *http.Transport
	endpoint *url.URL
	timeout  time.Duration // for the server to say that it has a message
	resend   bool          // settings.ResendSameID

	paired chan struct{} // one waits in it when the account was linked or unlinked

	turn sync.Mutex // Run's connection, or Pair's: never both

	mu   sync.Mutex
	live *session // connected and logged in; nil: not
}

// session is one connection that is logged in.
type session struct {
	client  *whatsmeow.Client
	link    *link
	leaving atomic.Bool // the account is being unlinked by us
}

func newChannel(d gateway.ChannelDeps) (gateway.Channel, error) {
	if d.Vault == nil {
		return nil, errors.New("whatsapp needs the vault: configure its key")
	}
	var s settings
	if raw := bytes.TrimSpace(d.Settings); len(raw) > 0 {
		if err := json.Unmarshal(raw, &s); err != nil {
			var wrong *json.UnmarshalTypeError
			if errors.As(err, &wrong) && wrong.Field != "" {
				return nil, fmt.Errorf("%s: must be a %s, not a %s", wrong.Field, wrong.Type, wrong.Value)
			}
			return nil, errors.New("not an object")
		}
	}
	quiet()
	c := &channel{
		log: d.Logger, creds: newCredentials(d.Vault), paired: make(chan struct{}, 1), timeout: 30 * time.Second, resend: s.ResendSameID,
		base: http.DefaultTransport.(*http.Transport).Clone(),
	}
	if err := c.useFake(s); err != nil {
		return nil, err
	}
	return c, nil
}

// certKeyOnce guards the library's variable, which is one for the process.
var certKeyOnce sync.Mutex

// useFake leads the account to a fake of WhatsApp, where a test allows it. Without that, whoever could write the configuration
// could read what passes.
func (c *channel) useFake(s settings) error {
	if s.Endpoint == "" && s.CertKey == "" {
		return nil
	}
	for key, value := range map[string]string{"endpoint": s.Endpoint, "certKey": s.CertKey} {
		if value == "" {
			return fmt.Errorf("%s: endpoint and certKey go together", key)
		}
	}
	if os.Getenv(TestVendors) != "1" {
		return fmt.Errorf("endpoint: only for tests: remove it and certKey, or set %s=1 in the gateway's environment", TestVendors)
	}
	u, err := url.Parse(s.Endpoint)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return errors.New("endpoint: must be an http or https address")
	}
	key, err := base64.StdEncoding.DecodeString(s.CertKey)
	if err != nil || len(key) != 32 {
		return errors.New("certKey: must be 32 bytes in base64")
	}
	certKeyOnce.Lock()
	defer certKeyOnce.Unlock()
	if !bytes.Equal(whatsmeow.WACertPubKey[:], key) {
		whatsmeow.WACertPubKey = [32]byte(key)
	}
	c.endpoint = u
	return nil
}

func (c *channel) current() *session {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.live
}

func (c *channel) setLive(s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.live = s
}

// changed wakes Run.
func (c *channel) changed() {
	select {
	case c.paired <- struct{}{}:
	default:
	}
}

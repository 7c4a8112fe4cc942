package bus

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/envelope/trust"
)

// readers knows the keys that payloads are encrypted for: what each gateway of the trust set published.
type readers struct {
	b *Bus

	mu    sync.Mutex
	known map[string]knownReader // by gateway
	// set is what known was judged by, and lists what was asked for since it or known changed.
	set   *trust.Set
	lists map[envelope.Address]*readerList
}

// readerList is who can read what is sent to an address, and what it is encrypted with for now.
type readerList struct {
	readers []*trust.Reader
	key     *trust.SendingKey
	made    time.Time
	used    int
}

// How long, and how often, one sending key is used: all that was encrypted with it is one secret.
const (
	sendingLife = time.Minute
	sendingUses = 100_000
)

type knownReader struct {
	pair   Pair
	reader *trust.Reader // nil: refused
	signed time.Time
}

// maxReaderLists bounds the lists that are kept.
const maxReaderLists = 4096

func newReaders(b *Bus) *readers {
	return &readers{b: b, known: map[string]knownReader{}, lists: map[envelope.Address]*readerList{}}
}

func (r *readers) follow(ctx context.Context) {
	r.b.watchForever(ctx, trust.EncryptionKeysPrefix, func(pairs []Pair) error {
		r.take(pairs)
		return nil
	})
}

// refresh reads what was published until now.
func (r *readers) refresh(ctx context.Context) error {
	pairs, err := r.b.store.List(ctx, trust.EncryptionKeysPrefix)
	if err != nil {
		return fmt.Errorf("read encryption keys: %w", err)
	}
	r.take(pairs)
	return nil
}

// take takes in what lies in the store. A key that is gone from there goes on to count: who deletes it gains nothing but that
// gateways which start now do not know it.
func (r *readers) take(pairs []Pair) {
	set := r.b.trustSet()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.judgeLocked(set)
	for _, p := range pairs {
		gw := p.Key[len(trust.EncryptionKeysPrefix):]
		if old := r.known[gw]; !envelope.ValidName(gw) || old.pair.ModifyIndex == p.ModifyIndex || set == nil || set.Member(gw) == nil && old.pair.Key == "" {
			continue
		}
		r.acceptLocked(gw, p)
	}
}

// judgeLocked judges all anew when the trust set is another one.
func (r *readers) judgeLocked(set *trust.Set) {
	if r.set == set {
		return
	}
	r.set = set
	clear(r.lists)
	for gw, k := range r.known {
		delete(r.known, gw)
		r.acceptLocked(gw, k.pair)
	}
}

// acceptLocked judges what a gateway published. What is refused changes nothing while there is something better.
func (r *readers) acceptLocked(gw string, p Pair) {
	old := r.known[gw]
	body, st, err := r.b.open(trust.KindEncryption, p.Key, p.Value, gw, "")
	var reader *trust.Reader
	if err == nil && st == nil {
		err = &trust.Refusal{Reason: trust.Unsigned, Gateway: gw, Detail: "its encryption key is not signed"}
	}
	if err == nil {
		reader, err = trust.DecodeReader(gw, body)
	}
	if err == nil && old.reader != nil && st.At.Time.Before(old.signed) {
		err = &trust.Refusal{Reason: trust.Replay, Gateway: gw, Key: st.Key, Detail: "an older encryption key than " + old.reader.ID}
	}
	if err != nil {
		r.b.refuse(p.Key, p.Value, err, "@"+gw, "")
		if old.reader == nil {
			r.known[gw] = knownReader{pair: p}
		}
		return
	}
	r.known[gw] = knownReader{p, reader, st.At.Time}
	clear(r.lists)
}

// missingLocked says why a gateway cannot be encrypted for; empty: it can.
func (r *readers) missingLocked(gw string) string {
	k := r.known[gw]
	switch age := r.b.now().Sub(k.signed); {
	case k.pair.Key == "":
		return "it has published no encryption key"
	case k.reader == nil:
		return "what lies at " + k.pair.Key + " is refused"
	case age > trust.EncryptionKeyLife:
		return fmt.Sprintf("the encryption key that it published was signed %d days ago", int(age.Hours()/24))
	}
	return ""
}

// sending is the key to encrypt with for an address now. Errors: those of of.
func (r *readers) sending(to envelope.Address) (*trust.SendingKey, error) {
	list, err := r.of(to)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if list.key == nil || list.used >= sendingUses || time.Since(list.made) > sendingLife {
		key, err := trust.NewSendingKey(r.b.cfg.Gateway, list.readers)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrNoEncryptionKey, err)
		}
		list.key, list.made, list.used = key, time.Now(), 0
	}
	list.used++
	return list.key, nil
}

// of lists those who can read what is sent to an agent now: the gateways that the trust set lets own its inbox, or the one
// that the message is pinned to. Errors: [ErrNoEncryptionKey].
func (r *readers) of(to envelope.Address) (*readerList, error) {
	if r.b.cfg.Keyring == nil {
		return nil, fmt.Errorf("%w: this gateway keeps no encryption keys (mesh.dataDir, and a trust set)", ErrNoEncryptionKey)
	}
	list, err := r.listed(to)
	if err != nil && r.b.life != nil {
		// One that has just started has published it, and the watch is on its way.
		ctx, cancel := context.WithTimeout(r.b.life, 5*time.Second)
		defer cancel()
		if rerr := r.refresh(ctx); rerr != nil {
			return nil, fmt.Errorf("%w (%w)", err, rerr)
		}
		list, err = r.listed(to)
	}
	return list, err
}

func (r *readers) listed(to envelope.Address) (*readerList, error) {
	set := r.b.trustSet()
	if set == nil {
		return nil, fmt.Errorf("%w: no trust set is known, so nobody can say whose key is whose (gatemesh trust init)", ErrNoEncryptionKey)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.judgeLocked(set)
	if list := r.lists[to]; list != nil {
		return list, nil
	}
	var list []*trust.Reader
	var lacking []string
	for i := range set.Gateways {
		gw := set.Gateways[i].Name
		if to.Gateway != "" && gw != to.Gateway || !set.MayHost(gw, to.Agent) {
			continue
		}
		if why := r.missingLocked(gw); why != "" {
			lacking = append(lacking, gw+": "+why)
			continue
		}
		list = append(list, r.known[gw].reader)
	}
	switch {
	case len(lacking) > 0:
		return nil, fmt.Errorf("%w: not every gateway that may run %s can read it (%s): start it with this version, or take it out of the trust set (gatemesh trust revoke)",
			ErrNoEncryptionKey, to.Agent, strings.Join(lacking, "; "))
	case len(list) == 0:
		return nil, fmt.Errorf("%w: the trust set lets no gateway run %s (gatemesh trust list)", ErrNoEncryptionKey, to)
	case len(list) > envelope.MaxReaders:
		return nil, fmt.Errorf("%w: %d gateways may run %s, at most %d can read one message: let fewer host it (gatemesh trust list)", ErrNoEncryptionKey, len(list), to, envelope.MaxReaders)
	}
	if len(r.lists) >= maxReaderLists {
		clear(r.lists)
	}
	r.lists[to] = &readerList{readers: list}
	return r.lists[to], nil
}

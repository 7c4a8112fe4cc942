package gateway

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/skip2/go-qrcode"

	"github.com/gatemesh/gatemesh/bus"
)

// ChannelsResponse answers GET /v1/channels: the accounts of this gateway's configuration, and those that others in the mesh own.
type ChannelsResponse struct {
	Channels []AccountStatus `json:"channels"`
}

// PairResponse answers POST /v1/channels/{inbox}/pair. Only the account's owner knows the code, and it is written down nowhere.
type PairResponse struct {
	// Code is what to scan now; nil when the account is linked.
	Code *PairingCode `json:"code,omitempty"`
	// Image is the code as a picture (a data: URL of a PNG), when it was asked for.
	Image  string `json:"image,omitempty"`
	Linked bool   `json:"linked"`
	ChannelStatus
}

// LoggedOutResponse answers POST /v1/channels/{inbox}/logout.
type LoggedOutResponse struct {
	LoggedOut string `json:"logged_out"` // the inbox
}

// ChannelOrder is the body of pair and logout.
type ChannelOrder struct {
	// Shown is the code that the caller shows already: pair answers with the next one. logout does not know it.
	Shown string `json:"shown,omitempty"`
	// Image asks for the code as a picture, too.
	Image bool `json:"image,omitempty"`
}

// pairWait is how long a request waits for a code or the end of the pairing.
const pairWait = 25 * time.Second

// getChannels is GET /v1/channels.
func (g *Gateway) getChannels(w http.ResponseWriter, r *http.Request) error {
	b, err := g.ready()
	if err != nil {
		return err
	}
	owners := map[string]string{}
	for _, o := range b.Duties() {
		if strings.HasPrefix(o.Duty, channelInbox) {
			owners[o.Duty] = o.Owner
		}
	}
	for inbox := range g.accounts {
		owners[inbox] = b.OwnerOf(inbox)
	}
	list := make([]AccountStatus, 0, len(owners))
	for inbox, owner := range owners {
		s, err := g.accountStatus(r.Context(), b, inbox, owner)
		if err != nil {
			return err
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b AccountStatus) int { return strings.Compare(a.Inbox, b.Inbox) })
	return writeJSON(w, http.StatusOK, ChannelsResponse{list})
}

// accountStatus is what an account is at: its owner's word, unless that is not its owner any more.
func (g *Gateway) accountStatus(ctx context.Context, b *bus.Bus, inbox, owner string) (AccountStatus, error) {
	a := g.accounts[inbox]
	if a != nil && owner == g.name {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.status, nil
	}
	var s AccountStatus
	entries, err := b.Room(ctx, inbox, statusName)
	if err != nil {
		return s, err
	}
	for _, e := range entries {
		if e.Name == statusName {
			_ = json.Unmarshal(e.Value, &s) // one that is spoiled says nothing
		}
	}
	s.Inbox = inbox
	if a != nil {
		s.Channel, s.Account = a.cfg.Channel, a.cfg.ID
	}
	if s.Gateway != owner || owner == "" {
		s.Gateway, s.State, s.Detail = owner, ChannelStopped, "nobody owns it now"
		if owner != "" {
			s.State, s.Detail = ChannelConnecting, owner+" has it, and has not said how it is"
		}
	}
	return s, nil
}

// getRoute is GET /v1/route?channel=&account=&peer_kind=&peer=&team=: by this gateway's configuration of now.
func (g *Gateway) getRoute(w http.ResponseWriter, r *http.Request) error {
	v := r.URL.Query()
	q := RouteQuery{Channel: v.Get("channel"), Account: v.Get("account"), Peer: ChannelPeer{Kind: v.Get("peer_kind"), ID: v.Get("peer")}, Team: v.Get("team")}
	route, err := g.router.Load().Explain(q)
	if err != nil {
		return badRequest("", "%v", err)
	}
	return writeJSON(w, http.StatusOK, route)
}

// ownedAccount is the account of the path, if its connection is here.
func (g *Gateway) ownedAccount(r *http.Request, o *ChannelOrder) (*account, *liveChannel, error) {
	if err := decodeBody(r, o); err != nil {
		return nil, nil, err
	}
	b, err := g.ready()
	if err != nil {
		return nil, nil, err
	}
	inbox := r.PathValue("inbox")
	owner := b.OwnerOf(inbox)
	a := g.accounts[inbox]
	if a != nil {
		a.mu.Lock()
		live := a.live
		a.mu.Unlock()
		if live != nil {
			return a, live, nil
		}
	}
	switch {
	case owner != "" && owner != g.name && strings.HasPrefix(inbox, channelInbox):
		where := ""
		for _, gw := range b.Gateways() {
			if gw.Name == owner {
				where = " (--addr " + gw.URL + ")"
			}
		}
		return nil, nil, &APIError{status: http.StatusConflict, Code: CodeNotOwned, Message: inbox + " is owned by " + owner + ": ask that gateway" + where}
	case a == nil:
		return nil, nil, &APIError{status: http.StatusNotFound, Code: CodeNotFound, Message: "there is no account " + clipText(inbox, 64) + " here (GET /v1/channels lists them)"}
	}
	return nil, nil, &APIError{status: http.StatusConflict, Code: CodeNotOwned, Message: "nobody is connected with " + inbox + " now: try again"}
}

// postPair is POST /v1/channels/{inbox}/pair: the code of now, or a new one; asked again it follows them until the account is linked.
func (g *Gateway) postPair(w http.ResponseWriter, r *http.Request) error {
	var o ChannelOrder
	a, live, err := g.ownedAccount(r, &o)
	if err != nil {
		return err
	}
	pairer, ok := live.channel.(ChannelPairer)
	if !ok {
		return badRequest("inbox", "accounts of %s are not paired: they have tokens in the configuration", a.cfg.Channel)
	}
	ctx, cancel := g.patient(w, r, pairWait)
	defer cancel()
	done := a.pair(g.life, pairer)
	for {
		a.mu.Lock()
		code, status, changed := a.code, a.status.ChannelStatus, a.changed
		a.mu.Unlock()
		switch {
		case status.State == ChannelConnected:
			return writeJSON(w, http.StatusOK, PairResponse{Linked: true, ChannelStatus: status})
		case code != nil && code.Code != o.Shown:
			p := PairResponse{Code: code, ChannelStatus: status}
			if o.Image {
				if p.Image, err = codeImage(code.Code); err != nil {
					return err
				}
			}
			return writeJSON(w, http.StatusOK, p)
		}
		select {
		case <-changed:
		case err := <-done:
			if err != nil {
				return &APIError{status: http.StatusConflict, Code: CodeChannel, Message: "the account was not linked: " + clipText(err.Error(), 200)}
			}
			return writeJSON(w, http.StatusOK, PairResponse{Linked: true, ChannelStatus: status})
		case <-ctx.Done():
			return writeJSON(w, http.StatusOK, PairResponse{Code: code, ChannelStatus: status})
		}
	}
}

// codeImage draws a code for a page.
func codeImage(code string) (string, error) {
	png, err := qrcode.Encode(code, qrcode.Low, 640)
	if err != nil {
		return "", fmt.Errorf("draw the code: %w", err)
	}
	return "data:image/png;base64," + base64.StdEncoding.EncodeToString(png), nil
}

// pair has one pairing run at a time; its end goes to whoever asked first.
func (a *account) pair(life context.Context, p ChannelPairer) <-chan error {
	done := make(chan error, 1)
	a.mu.Lock()
	if a.pairing {
		a.mu.Unlock()
		return nil // never ready
	}
	a.pairing = true
	a.mu.Unlock()
	a.g.run(func() {
		ctx, cancel := context.WithTimeout(life, pairingTimeout)
		defer cancel()
		err := p.Pair(ctx, func(c PairingCode) { a.set(func() { a.code = &c }) })
		a.set(func() { a.code, a.pairing = nil, false })
		if err == nil {
			a.tryAgain()
		}
		done <- err
	})
	return done
}

// pairingTimeout bounds one pairing.
const pairingTimeout = 5 * time.Minute

// postLogout is POST /v1/channels/{inbox}/logout.
func (g *Gateway) postLogout(w http.ResponseWriter, r *http.Request) error {
	var o ChannelOrder
	a, live, err := g.ownedAccount(r, &o)
	if err != nil {
		return err
	}
	pairer, ok := live.channel.(ChannelPairer)
	if !ok {
		return badRequest("inbox", "accounts of %s are not logged out: take their tokens out of the configuration, and revoke them at the vendor", a.cfg.Channel)
	}
	ctx, cancel := g.patient(w, r, pairWait)
	defer cancel()
	if err := pairer.Logout(ctx); err != nil {
		return &APIError{status: http.StatusBadGateway, Code: CodeChannel, Message: "not logged out: " + clipText(err.Error(), 200)}
	}
	return writeJSON(w, http.StatusOK, LoggedOutResponse{a.inbox})
}

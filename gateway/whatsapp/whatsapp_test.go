package whatsapp

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.mau.fi/whatsmeow/proto/waCommon"
	"go.mau.fi/whatsmeow/proto/waE2E"
	"go.mau.fi/whatsmeow/types"
	"go.mau.fi/whatsmeow/types/events"
	"google.golang.org/protobuf/proto"

	"github.com/gatemesh/gatemesh/gateway"
)

type noVault struct{}

func (noVault) Get(context.Context, string) ([]byte, error)             { return nil, nil }
func (noVault) List(context.Context, string) (map[string][]byte, error) { return nil, nil }
func (noVault) Write(context.Context, map[string][]byte) error          { return errors.New("no") }

func TestSettings(t *testing.T) {
	for _, c := range []struct{ settings, allowed, wrong string }{
		{``, "", ""},
		{`{"enabled":true}`, "", ""},
		{`[]`, "", "not an object"},
		{`{"resendSameId":"yes"}`, "", "resendSameId"},
		{`{"endpoint":7}`, "", "endpoint"},
		{`{"endpoint":"http://127.0.0.1"}`, "1", "go together"},
		{`{"endpoint":"http://127.0.0.1","certKey":"AAAA"}`, "", TestVendors},
		{`{"endpoint":"http://127.0.0.1","certKey":"AAAA"}`, "1", "certKey: must be 32 bytes"},
		{`{"endpoint":"ftp://127.0.0.1","certKey":"AAAA"}`, "1", "endpoint: must be"},
	} {
		t.Setenv(TestVendors, c.allowed)
		_, err := newChannel(gateway.ChannelDeps{Settings: []byte(c.settings), Vault: noVault{}, Logger: hclog.NewNullLogger()})
		if c.wrong == "" && err != nil || c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong)) {
			t.Errorf("%s: %v", c.settings, err)
		}
	}
	if _, err := newChannel(gateway.ChannelDeps{Logger: hclog.NewNullLogger()}); err == nil {
		t.Error("made without a vault")
	}
}

func TestEvents(t *testing.T) {
	c := &channel{creds: newCredentials(noVault{})}
	ann := types.JID{User: "4917", Device: 3, Server: types.DefaultUserServer}
	hidden := types.JID{User: "9001", Device: 3, Server: types.HiddenUserServer}
	self, selfLID := types.NewJID("4900", types.DefaultUserServer), types.NewJID("9000", types.HiddenUserServer)
	group := types.NewJID("1203", types.GroupServer)
	at := time.Unix(1, 0)
	message := func(chat, sender types.JID, m *waE2E.Message) *events.Message {
		e := &events.Message{Info: types.MessageInfo{ID: "M1", PushName: "Ann", Timestamp: at}, RawMessage: m}
		e.Info.Chat, e.Info.Sender = chat, sender
		return e.UnwrapRaw()
	}
	edit := &waE2E.Message{EditedMessage: &waE2E.FutureProofMessage{Message: &waE2E.Message{ProtocolMessage: &waE2E.ProtocolMessage{
		Type: waE2E.ProtocolMessage_MESSAGE_EDIT.Enum(), Key: &waCommon.MessageKey{ID: proto.String("M0")},
		EditedMessage: &waE2E.Message{Conversation: proto.String("better")},
	}}}}
	image := &waE2E.Message{ImageMessage: &waE2E.ImageMessage{Mimetype: proto.String("image/png"), FileLength: proto.Uint64(9), Caption: proto.String("look")}}
	named := func(who string) *waE2E.Message {
		return &waE2E.Message{ExtendedTextMessage: &waE2E.ExtendedTextMessage{Text: proto.String("you"), ContextInfo: &waE2E.ContextInfo{MentionedJID: []string{who}}}}
	}
	dm := gateway.ChannelPeer{Kind: gateway.PeerDM, ID: "4917@s.whatsapp.net"}
	from := gateway.ChannelSender{ID: dm.ID, Name: "Ann"}
	base := gateway.ChannelEvent{ID: "4917@s.whatsapp.net/M1", Message: "M1", Peer: dm, Sender: from, Mentioned: true, At: at}
	with := func(f func(*gateway.ChannelEvent)) *gateway.ChannelEvent { e := base; f(&e); return &e }
	inGroup := func(mentioned bool) *gateway.ChannelEvent {
		return with(func(e *gateway.ChannelEvent) {
			e.ID, e.Message, e.Text, e.Mentioned = "1203@g.us/M1", "M1/4917@s.whatsapp.net", "you", mentioned
			e.Peer = gateway.ChannelPeer{Kind: gateway.PeerGroup, ID: "1203@g.us"}
		})
	}
	own := message(ann.ToNonAD(), ann, &waE2E.Message{Conversation: proto.String("x")})
	own.Info.IsFromMe = true
	lid := message(hidden.ToNonAD(), hidden, &waE2E.Message{Conversation: proto.String("x")})
	lid.Info.SenderAlt = ann
	for name, c2 := range map[string]struct {
		in   *events.Message
		want *gateway.ChannelEvent
	}{
		"text": {message(ann.ToNonAD(), ann, &waE2E.Message{Conversation: proto.String("hi")}), with(func(e *gateway.ChannelEvent) { e.Text = "hi" })},
		"edit": {message(ann.ToNonAD(), ann, edit), with(func(e *gateway.ChannelEvent) { e.Text, e.Edited, e.Message = "better", true, "M0" })},
		"file": {message(ann.ToNonAD(), ann, image), with(func(e *gateway.ChannelEvent) {
			e.Text, e.Files = "look", []gateway.ChannelFile{{Name: "image", Type: "image/png", Size: 9}}
		})},
		"hidden id":       {lid, with(func(e *gateway.ChannelEvent) { e.ID, e.Text = "9001@lid/M1", "x" })},
		"named":           {message(group, ann, named("4900@s.whatsapp.net")), inGroup(true)},
		"named by hidden": {message(group, ann, named("9000@lid")), inGroup(true)},
		"other named":     {message(group, ann, named("4911@s.whatsapp.net")), inGroup(false)},
		"own":             {own, nil},
		"reaction":        {message(ann.ToNonAD(), ann, &waE2E.Message{ReactionMessage: &waE2E.ReactionMessage{Text: proto.String("x")}}), nil},
		"status":          {message(types.StatusBroadcastJID, ann, &waE2E.Message{Conversation: proto.String("x")}), nil},
	} {
		got, ok := c.event(t.Context(), c2.in, self, selfLID)
		if ok != (c2.want != nil) || ok && !reflect.DeepEqual(got, *c2.want) {
			t.Errorf("%s: %+v, %v", name, got, ok)
		}
	}
}

func TestFormat(t *testing.T) {
	for in, want := range map[string]string{
		"**a** and _b_":             "*a* and _b_",
		"## Title\ntext":            "*Title*\ntext",
		"~~no~~":                    "~no~",
		"[x](https://a.example/b)":  "x (https://a.example/b)",
		"```\n**a** # b\n``` **c**": "```\n**a** # b\n``` *c*",
		"2 * 3 * 4":                 "2 * 3 * 4",
	} {
		if got := format(in); got != want {
			t.Errorf("%q: %q, not %q", in, got, want)
		}
	}
}

// What the library says of frames, keys and codes is not shown.
func TestLogShowsNoKeys(t *testing.T) {
	var out strings.Builder
	key := strings.Repeat("aZ09+/", 8)
	l := logger{to: hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: &out}), unreadable: func() {}}
	l.Warnf("a node: %s", `<iq><ref>`+key+`</ref></iq>`)
	l.Errorf("a code: %s", "2@abc,"+key)
	l.Sub("Recv").Debugf("%s", key)
	l.Infof("%s", key)
	if s := out.String(); strings.Contains(s, key) || strings.Contains(s, "<ref>") || strings.Count(s, "\n") != 2 {
		t.Error(s)
	}
	if id := messageID("0198-a"); id != messageID("0198-a") || id == messageID("0198-b") || len(id) != 22 {
		t.Error(id)
	}
}

// What is moved to a hidden id is found there, and what a step wrote and took back again costs nothing.
func TestCredentials(t *testing.T) {
	c := newCredentials(noVault{})
	pn, lid := types.NewJID("4917", types.DefaultUserServer), types.NewJID("9001", types.HiddenUserServer)
	ctx := t.Context()
	for _, err := range []error{
		c.PutSession(ctx, pn.SignalAddress().String(), []byte("s")), c.PutSenderKey(ctx, "g", pn.SignalAddress().String(), []byte("k")),
		c.MigratePNToLID(ctx, pn, lid),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	session, _ := c.GetSession(ctx, lid.SignalAddress().String())
	sender, _ := c.GetSenderKey(ctx, "g", lid.SignalAddress().String())
	if has, _ := c.HasSession(ctx, pn.SignalAddress().String()); has || string(session) != "s" || string(sender) != "k" {
		t.Errorf("moved: %v %q %q", has, session, sender)
	}
	keys, err := c.GetOrGenPreKeys(ctx, 300)
	if err != nil || len(keys) != 300 || keys[299].KeyID != 300 {
		t.Fatalf("%d keys, %v", len(keys), err)
	}
	_ = c.MarkPreKeysAsUploaded(ctx, 300)
	_ = c.RemovePreKey(ctx, 129)
	gone, _ := c.GetPreKey(ctx, 129)
	kept, _ := c.GetPreKey(ctx, 130)
	if n, _ := c.UploadedPreKeyCount(ctx); n != 299 || gone != nil || kept == nil || *kept.Priv != *keys[129].Priv {
		t.Errorf("%d keys; %v, %v", n, gone, kept)
	}
	clear(c.dirty)
	_ = c.PutBufferedEvent(ctx, [32]byte{1}, []byte("plain"), time.Now())
	_ = c.ClearBufferedEventPlaintext(ctx, [32]byte{1})
	if err := c.flush(ctx); err != nil {
		t.Errorf("it wrote: %v", err)
	}
	c.put("x", []byte("y"))
	if err := c.flush(ctx); !errors.Is(err, errStore) {
		t.Error(err)
	}
	if err := c.flush(ctx); !errors.Is(err, errStore) {
		t.Errorf("after a failed write: %v", err)
	}
}

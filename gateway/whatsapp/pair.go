package whatsapp

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.mau.fi/whatsmeow/types/events"

	"github.com/gatemesh/gatemesh/gateway"
)

// How long WhatsApp takes a code: the first one longer.
const (
	firstCode = 60 * time.Second
	nextCode  = 20 * time.Second
)

// Pair implements [gateway.ChannelPairer]: the codes are shown one after the other, each until it expires, some two and a half
// minutes in all. What is linked is stored before the phone hears that it is.
func (c *channel) Pair(ctx context.Context, show func(gateway.PairingCode)) error {
	c.turn.Lock()
	defer c.turn.Unlock()
	if err := c.creds.load(ctx); err != nil {
		return err
	}
	device, err := c.creds.device()
	if err != nil {
		return err
	}
	if device != nil {
		return fmt.Errorf(`%s is linked already: "gatemesh channels logout" unlinks it`, device.GetJID().ToNonAD())
	}
	if err := c.creds.wipe(ctx); err != nil { // what an earlier account left
		return err
	}
	if device, err = c.creds.newDevice(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p := &pairing{observer: observer{c: c, ctx: ctx}, show: show}
	err = c.converse(ctx, device, p.handle, &p.observer)
	p.shown.Wait()
	if linked, stored := c.creds.device(); stored == nil && linked != nil && c.creds.failed() == nil && p.verdict() != nil && errors.Is(p.verdict(), errPaired) {
		c.changed()
		return nil
	}
	if failed := c.creds.failed(); failed != nil {
		return failed
	}
	return errors.Join(p.verdict(), c.forget(ctx), err)
}

// forget drops what is stored, whatever became of an earlier write.
func (c *channel) forget(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storing)
	defer cancel()
	if err := c.creds.load(ctx); err != nil {
		return err
	}
	return c.creds.wipe(ctx)
}

// Logout implements [gateway.ChannelPairer]. When WhatsApp cannot be reached nothing is forgotten: the account would stay linked
// with nobody who could unlink it, except on the phone.
func (c *channel) Logout(ctx context.Context) error {
	s := c.current()
	if s == nil {
		c.turn.Lock()
		defer c.turn.Unlock()
		if err := c.creds.load(ctx); err != nil {
			return err
		}
		device, err := c.creds.device()
		if err == nil && device != nil {
			return errors.New("not connected to WhatsApp: try again when it is, or unlink the device on the phone (Settings, Linked devices)")
		}
		return c.creds.wipe(ctx)
	}
	s.leaving.Store(true)
	if err := s.client.Logout(ctx); err != nil {
		s.leaving.Store(false)
		if failed := c.creds.failed(); failed != nil {
			return failed
		}
		return fmt.Errorf("unlinking the account: %s", plain(err))
	}
	s.link.close(errClosed)
	return c.creds.failed()
}

// pairing is the connection on which an account is linked.
type pairing struct {
	observer
	show  func(gateway.PairingCode)
	shown sync.WaitGroup
}

func (p *pairing) handle(evt any) bool {
	switch e := evt.(type) {
	case *events.QR:
		p.shown.Go(func() { p.showAll(e.Codes) })
	case *events.PairError:
		p.judge(fmt.Errorf("the account was not linked: %s", plain(e.Error)))
	case *events.QRScannedWithoutMultidevice:
		p.judge(errors.New("the phone's WhatsApp is too old to link devices: update it"))
	default:
		if err := verdictOf(evt); err != nil {
			p.judge(err)
		}
	}
	return true
}

func (p *pairing) showAll(codes []string) {
	valid := firstCode
	for _, code := range codes {
		t := time.NewTimer(valid)
		p.show(gateway.PairingCode{Code: code, Expires: time.Now().Add(valid)})
		select {
		case <-t.C:
		case <-p.session.link.done:
			t.Stop()
			return
		case <-p.ctx.Done():
			t.Stop()
			return
		}
		valid = nextCode
	}
	p.judge(errors.New("no code was scanned in time: try again"))
}

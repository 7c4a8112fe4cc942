package main

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/gatemesh/gatemesh/envelope/trust"
	"github.com/gatemesh/gatemesh/gateway"
)

type auditFlags struct {
	config, dir string
	keys        []string
}

func (a *app) auditCommand() *cobra.Command {
	var o auditFlags
	flags := func(c *cobra.Command) *cobra.Command {
		c.Flags().StringVar(&o.config, "config", "", configFlagHelp)
		c.Flags().StringVar(&o.dir, "dir", "", "directory of the log (default: audit in the configuration's mesh.dataDir)")
		_ = c.MarkFlagFilename("config", "json", "json5")
		_ = c.MarkFlagDirname("dir")
		return c
	}
	verify := flags(&cobra.Command{
		Use:   "verify",
		Short: "Find what was changed, removed, added or moved in a gateway's audit log",
		Long: `Read a gateway's audit log and say of each line that was changed, removed, added or moved where that is. The
signatures in it are judged by --key or, without one, by the trust set that the gateway has pinned, or else by the gateway's own key,
both beside the log. Give --key (gatemesh trust list shows them) where somebody may have changed those files too.

Nobody can see from the log alone that its oldest files are gone (they go by age), or that its last lines are, signatures and
all: compare first_seq, last_seq and head with what an earlier run said.

Status 0: the log is whole. 1: it is not. 2: bad input.`,
		Example: "  gatemesh audit verify --config /etc/gatemesh/openclaw.json\n  gatemesh audit verify --dir ./audit --key BASE64 --json",
		Args:    cobra.NoArgs,
		RunE:    body(func(*cobra.Command, []string) error { return a.auditVerify(o) }),
	})
	verify.Flags().StringArrayVar(&o.keys, "key", nil, "public key of the gateway, in base64 (repeatable: it may have changed its key)")
	export := flags(&cobra.Command{
		Use:   "export",
		Short: "Write a gateway's audit log to standard output, as JSON lines, oldest first",
		Long:  "Write a gateway's audit log to standard output, as JSON lines, oldest first. They are the very lines, so that hashes and signatures still fit.",
		Args:  cobra.NoArgs,
		RunE:  body(func(*cobra.Command, []string) error { return a.auditExport(o) }),
	})
	return group("audit", "Check and export a gateway's audit log", verify, export)
}

// auditDir finds the log, and the directory that the gateway's key lies in.
func (a *app) auditDir(o auditFlags) (dir string, err error) {
	if dir = o.dir; dir == "" {
		cfg, _, err := a.loadConfig(a.configPath(o.config), nil)
		if err != nil {
			return "", err
		}
		dir = filepath.Join(cfg.Mesh.DataDir, gateway.AuditDir)
	}
	if notThere(dir) {
		return "", failf(exitUsage, "no audit log at %s: name its directory with --dir", dir)
	}
	return dir, nil
}

func (a *app) auditVerify(o auditFlags) error {
	dir, err := a.auditDir(o)
	if err != nil {
		return err
	}
	check, by, err := auditKeys(filepath.Dir(dir), o.keys)
	if err != nil {
		return err
	}
	rep, err := gateway.VerifyAudit(dir, check)
	if err != nil {
		return err
	}
	p := a.printer()
	if a.asJSON {
		err = p.json(rep)
	} else {
		for _, x := range rep.Problems {
			p.printf("%s %s\n", p.paint(red, "wrong:"), printable(x.String()))
		}
		p.printf("%d lines in %s (%d to %d), %d signatures, judged by %s\n", rep.Lines, plural(rep.Files, "file"), rep.First, rep.Last, rep.Marks, by)
		if rep.Unvouched > 0 {
			p.printf("the last %d lines are not signed yet\n", rep.Unvouched)
		}
		if rep.Inherited > 0 {
			p.printf("%d lines were found unsigned after a crash, and signed by the next process\n", rep.Inherited)
		}
		if rep.Lost > 0 {
			p.printf("%s %d lines are missing, and the log says so: the disk was full or slow\n", p.paint(yellow, "warning:"), rep.Lost)
		}
		if len(rep.Problems) == 0 {
			p.printf("%s head %s\n", p.paint(green, "whole:"), rep.Head)
		}
	}
	if err == nil && (len(rep.Problems) > 0 || rep.Lines == 0) {
		err = quiet(exitFailed)
	}
	return err
}

// auditKeys is how the log's signatures are judged: by the given keys, or by what lies in the gateway's state.
func auditKeys(state string, given []string) (check func(*trust.Stamp, string, []byte) error, by string, err error) {
	var keys []ed25519.PublicKey
	for _, text := range given {
		public, err := trust.ParsePublic(text)
		if err != nil {
			return nil, "", failf(exitUsage, "--key: %w", err)
		}
		keys = append(keys, public)
	}
	by = "the given keys"
	if len(keys) == 0 {
		former, err := gateway.FormerKeys(state)
		if err != nil {
			return nil, "", &exitError{exitUsage, err}
		}
		if set, err := gateway.PinnedSet(state); err != nil {
			return nil, "", err
		} else if set != nil {
			v := trust.NewVerifier(set.Mesh, true)
			v.Use(set)
			return func(st *trust.Stamp, place string, object []byte) error {
				err := v.Stamp(trust.KindAudit, place, object, st, st.Gateway, "")
				// A key that has left the set after many rotations, or was changed before there was a set. Not so one that was revoked.
				if r := (*trust.Refusal)(nil); errors.As(err, &r) && r.Reason == trust.UnknownKey && signedByOne(st, former, place, object) {
					return nil
				}
				return err
			}, fmt.Sprintf("the pinned trust set %d", set.Version), nil
		}
		key, err := trust.LoadKey(filepath.Join(state, gateway.IdentityFile))
		if err != nil {
			return nil, "", failf(exitUsage, "no key to judge the signatures by: give --key (%w)", err)
		}
		keys, by = slices.Concat(former, []ed25519.PublicKey{key.Public()}), "the gateway's own key "+key.ID()
	}
	return func(st *trust.Stamp, place string, object []byte) error {
		if signedByOne(st, keys, place, object) {
			return nil
		}
		return errors.New("none of the keys made it")
	}, by, nil
}

func signedByOne(st *trust.Stamp, keys []ed25519.PublicKey, place string, object []byte) bool {
	return slices.ContainsFunc(keys, func(public ed25519.PublicKey) bool { return st.SignedBy(public, trust.KindAudit, place, object) })
}

func (a *app) auditExport(o auditFlags) error {
	dir, err := a.auditDir(o)
	if err != nil {
		return err
	}
	return gateway.ExportAudit(a.out, dir)
}

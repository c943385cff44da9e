package main

import (
	_ "embed"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"vmscope/block/tap"
)

// hotplugScript is what xl calls when a disk comes or goes.
//
//go:embed block-vmscope.sh
var hotplugScript string

func (a *app) xenBlockCmd() *cobra.Command {
	var f watchFlags
	var s tap.Service
	var paths []string
	var script bool
	c := &cobra.Command{
		Use:   "xen-block --image F [--watch PATH…]",
		Short: "Serve a disk to a Xen guest, and tell what happens to the files on it",
		Long: `xen-block is the back end of a Xen guest's disk, in place of the kernel's or QEMU's:
it serves a raw image, a block device, or an NBD export, and tells what the guest
does to its files, like watch. Neither the guest nor the hypervisor is changed. It
runs where the disk is, in dom0 most often, as root.

Once:
  vmscope xen-block --print-script > /etc/xen/scripts/block-vmscope
  chmod +x /etc/xen/scripts/block-vmscope

In the guest's configuration, or with 'xl block-attach DOMAIN' to a guest that runs:
  disk = [ "vdev=xvda,access=rw,backendtype=phy,script=block-vmscope,target=F" ]

F is the same in both places. The command may be started before the guest is, and
goes on when that is rebooted. What is answered as durable is durable. The disk is
served by a process of its own: if this command ends (Ctrl-C too) while a guest
uses the disk, that goes on until the guest ends. If all of it is killed, start it
again: the guest waits, and loses nothing.`,
		Example: `  vmscope xen-block --image /srv/web1.img --watch /etc
  vmscope xen-block --image /dev/vg0/web1 --domain web1 --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if script {
				_, err := fmt.Fprint(a.out, hotplugScript)
				return err
			}
			if s.Image == "" {
				return fmt.Errorf("xen-block needs --image F, what to serve; see '%s --help'", cmd.CommandPath())
			}
			o, err := f.options(paths)
			if err != nil {
				return err
			}
			t := &teller{app: a, flags: &f, bar: newProgress()}
			source, err := tap.ServeXen(cmd.Context(), s, tap.Options{Warn: t.warn})
			if errors.Is(err, tap.ErrInUse) {
				err = fmt.Errorf("%w; 'ps ax | grep vmscope-receiver' shows who serves it, if it is vmscope", err)
			}
			if err != nil {
				return err
			}
			at, err := filepath.Abs(s.Image)
			if err != nil {
				at = s.Image
			}
			return t.served(cmd.Context(), source, fmt.Sprintf("script=block-vmscope,target=%s", at), paths, o)
		},
	}
	f.add(c)
	f.addRecord(c)
	p := c.Flags()
	p.StringVar(&s.Image, "image", "", "raw image, block device, or URI of an NBD export")
	p.StringVar(&s.Domain, "domain", "", "serve only this domain, by name or number")
	p.StringVar(&s.Device, "vdev", "", "serve only the disk of this name in the guest: xvda")
	p.StringSliceVar(&paths, "watch", nil, "tell only what happens below these paths")
	p.BoolVar(&s.ReadOnly, "read-only", false, "let nobody write")
	p.BoolVar(&script, "print-script", false, "print the hotplug script for /etc/xen/scripts, and do nothing else")
	return c
}

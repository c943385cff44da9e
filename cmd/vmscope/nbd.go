package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"vmscope"
	"vmscope/block/tap"
	"vmscope/watch"
)

func (a *app) nbdCmd() *cobra.Command {
	var f watchFlags
	var s tap.Service
	var paths []string
	var socket, protocol string
	var diskPaths bool
	c := &cobra.Command{
		Use:   "nbd --image F --socket S [--watch PATH…]",
		Short: "Serve a disk to a VM, and tell what happens to the files on it",
		Long: `nbd serves a raw image, a block device, or another NBD export to a VMM, and tells
what the guest does to its files, like watch, without a mirror job: for VMs whose
command line or XML can be changed, and for VMMs other than QEMU.

  -blockdev driver=nbd,node-name=d,server.type=unix,server.path=S,reconnect-delay=10,discard=unmap

With --protocol vhost-user it is a vhost-user-blk back end instead, the cheapest way; the
guest's memory must be shared. It is read, so that paths are the guest's.

  -chardev socket,id=v,path=S,reconnect=1 -device vhost-user-blk-pci,chardev=v

What is answered as durable is durable. The disk is served by a process of its
own: if this command ends (Ctrl-C too) while a client is connected, that goes on
until the client leaves.`,
		Example: `  vmscope nbd --image disk.img --socket /run/disk.sock --watch /etc
  vmscope nbd --image 'nbd+unix:///?socket=/run/other.sock' --socket /run/disk.sock`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if s.Image == "" || socket == "" {
				return fmt.Errorf("nbd needs --image F, what to serve, and --socket S, where; see '%s --help'", cmd.CommandPath())
			}
			if (s.Cert == "") != (s.Key == "") || s.CA != "" && s.Cert == "" {
				return errors.New("TLS needs --tls-cert and --tls-key, and --tls-ca beside them if clients are to show certificates")
			}
			switch protocol {
			case "", "nbd":
				s.Protocol = tap.NBD
			case "vhost-user":
				s.Protocol = tap.VhostUser
			default:
				return fmt.Errorf("--protocol %q: it is nbd or vhost-user", protocol)
			}
			o, err := f.options(paths)
			if err != nil {
				return err
			}
			return a.serve(cmd.Context(), socket, s, &f, paths, o, !diskPaths && s.Protocol == tap.VhostUser)
		},
	}
	f.add(c)
	f.addRecord(c)
	p := c.Flags()
	p.StringVar(&s.Image, "image", "", "raw image, block device, or URI of an NBD export")
	p.StringVar(&socket, "socket", "", "unix socket to serve at, or HOST:PORT")
	p.StringSliceVar(&paths, "watch", nil, "tell only what happens below these paths")
	p.StringVar(&protocol, "protocol", "nbd", "nbd, or vhost-user for a vhost-user-blk back end")
	p.BoolVar(&s.ReadOnly, "read-only", false, "let nobody write")
	p.StringVar(&s.Export, "export", "", "name of the NBD export")
	p.BoolVar(&diskPaths, "disk-paths", false, "by vhost-user: tell paths as they are on the disk, also where the guest has it mounted elsewhere")
	p.StringVar(&s.Serial, "serial", "", "the disk's serial number, by vhost-user")
	p.StringVar(&s.Cert, "tls-cert", "", "certificate (PEM): clients must use TLS")
	p.StringVar(&s.Key, "tls-key", "", "its key (PEM)")
	p.StringVar(&s.CA, "tls-ca", "", "authority (PEM) of clients that may connect")
	_ = c.RegisterFlagCompletionFunc("protocol", fixed("nbd", "vhost-user"))
	return c
}

// serve serves a disk at a socket until it is interrupted. mounted: paths are to be the guest's.
func (a *app) serve(ctx context.Context, socket string, s tap.Service, f *watchFlags, paths []string, o watch.Options, mounted bool) error {
	ln, err := listen(socket)
	if err != nil {
		return err
	}
	at := fmt.Sprintf("%q", ln.Addr().String()) // of port 0, too
	t := &teller{app: a, flags: f, bar: newProgress()}
	source, err := tap.Serve(ctx, ln, s, tap.Options{Warn: t.warn})
	if err != nil {
		return err
	}
	if mounted {
		var stop func()
		o.Mounted, stop = vmscope.MountedServed(ctx, source)
		defer stop()
	}
	return t.served(ctx, source, at, paths, o)
}

// served tells what happens on a disk that is served, until it is interrupted.
func (t *teller) served(ctx context.Context, source *tap.Tap, at string, paths []string, o watch.Options) (err error) {
	alone()
	o.Progress, o.Warn = t.progress, t.warn
	defer func() {
		t.bar.clear()
		err = errors.Join(err, source.Close())
		if n := source.Serving(); n > 0 {
			fmt.Fprintf(t.err, "vmscope: the disk is in use: it is served until its %d client(s) leave\n", n)
		}
	}()
	disk, stop, err := t.flags.recorded(source, t.warn)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	w, err := watch.New([]watch.Disk{{Name: "disk0", Source: disk}}, o)
	if err != nil {
		return err
	}
	t.follow(ctx, w, paths)
	fmt.Fprintf(t.err, "vmscope: serving at %s\n", at)
	if err = w.Run(ctx, t.tell); errors.Is(err, errors.ErrUnsupported) && ctx.Err() == nil {
		// There is no file system yet: serve all the same.
		t.warn(err)
		err = w.Wait(ctx, t.tell)
	}
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	return err
}

// listen makes the socket. One that nobody listens at any more is replaced.
func listen(socket string) (net.Listener, error) {
	if host, _, err := net.SplitHostPort(socket); err == nil && !strings.Contains(host, "/") {
		return net.Listen("tcp", socket)
	}
	st, err := os.Lstat(socket)
	if err == nil && st.Mode()&fs.ModeSocket == 0 {
		return nil, fmt.Errorf("--socket %q: there is something else of that name", socket)
	}
	if err == nil {
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			return nil, fmt.Errorf("%q: somebody serves there already", socket)
		}
		if err := os.Remove(socket); err != nil {
			return nil, err
		}
	}
	return net.Listen("unix", socket)
}

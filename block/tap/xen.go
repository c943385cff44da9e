package tap

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"vmscope/block"
	"vmscope/block/xenblk"
	"vmscope/internal/xenbus"
)

// XenScript is what the name of a vbd's hotplug script begins with (script= in the disk line) if the vbd is ours to serve.
const XenScript = "block-vmscope"

// ServeXen is Serve for disks of a Xen host's guests, whose back end we then are: those whose disk line names XenScript as
// script= and the image as target=, one after the other. It may begin before the guest is there.
func ServeXen(ctx context.Context, s Service, o Options) (*Tap, error) {
	s.Protocol = Xen
	c, err := xenbus.Open()
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("this is no Xen host: %w", err)
	}
	if err != nil {
		return nil, err
	}
	c.Close()
	t, err := serve(ctx, nil, s, o)
	if err != nil {
		return nil, fmt.Errorf("serve %q: %w", s.Image, err)
	}
	return t, nil
}

// xenFront is the back end of vbds.
type xenFront struct {
	service *Service
	disk    block.Disk
	feed    *feed
	warn    func(error)
}

func (x *xenFront) serve(ctx context.Context, _ net.Listener, entered func() func()) error {
	h, err := xenblk.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	srv, err := xenblk.New(x.disk, xenblk.Options{
		Observer: &observer{feed: x.feed}, ReadOnly: x.service.ReadOnly, Report: x.warn,
		Connected: func(xenblk.Vbd) func() { return entered() },
	})
	if err != nil {
		return err
	}
	return srv.Serve(ctx, h, func(v xenblk.Vbd) bool { return x.service.wants(ctx, h.Store, v) })
}

// wants reports whether a vbd is to be served.
func (s *Service) wants(ctx context.Context, store *xenbus.Client, v xenblk.Vbd) bool {
	switch {
	case !strings.HasPrefix(filepath.Base(v.Script), XenScript), s.Device != "" && s.Device != v.Name:
		return false
	case s.Domain != "" && s.Domain != strconv.Itoa(int(v.Domain)):
		name, err := store.Read(ctx, fmt.Sprintf("/local/domain/%d/name", v.Domain))
		if err != nil || name != s.Domain {
			return false
		}
	}
	if v.Target == s.Image {
		return true
	}
	a, err := os.Stat(s.Image)
	if err != nil {
		return false
	}
	b, err := os.Stat(v.Target)
	return err == nil && os.SameFile(a, b)
}

package main

import (
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"vmscope/event"
	"vmscope/kernel"
)

// eventRow is an event as JSON.
type eventRow struct {
	Time       time.Time   `json:"time"`
	Seq        uint64      `json:"seq"`
	Op         event.Op    `json:"op"`
	Path       kernel.Text `json:"path,omitempty"`
	OldPath    kernel.Text `json:"old_path,omitempty"`
	Inode      uint64      `json:"inode,omitempty"`
	Generation uint32      `json:"generation,omitempty"`

	Kind  event.Kind `json:"kind,omitempty"`
	Mode  *uint32    `json:"mode,omitempty"`
	UID   *uint32    `json:"uid,omitempty"`
	GID   *uint32    `json:"gid,omitempty"`
	Size  *int64     `json:"size,omitempty"`
	Nlink *uint32    `json:"nlink,omitempty"`

	Offset *int64       `json:"offset,omitempty"`
	Length *int64       `json:"length,omitempty"`
	Target *kernel.Text `json:"target,omitempty"`
	Device string       `json:"device,omitempty"`
	TID    uint64       `json:"tid,omitempty"`
	Source event.Source `json:"source,omitempty"`
	Disk   string       `json:"disk,omitempty"`
	FS     kernel.Text  `json:"fs,omitempty"`
	Detail kernel.Text  `json:"detail,omitempty"`
	SHA256 string       `json:"sha256,omitempty"`
	Copy   string       `json:"copy,omitempty"` // where the content was put
	Torn   bool         `json:"torn,omitempty"`
}

func eventOf(e *event.Event) eventRow {
	r := eventRow{
		Time: e.Time.UTC(), Seq: e.Seq, Op: e.Op, Path: kernel.Text(e.Path), OldPath: kernel.Text(e.OldPath),
		Inode: e.Inode, Generation: e.Generation, TID: e.TID, Source: e.Source, Disk: e.Disk, FS: kernel.Text(e.FS), Detail: kernel.Text(e.Detail),
	}
	if a := e.Attr; a != nil {
		r.Kind, r.Mode, r.UID, r.GID, r.Size, r.Nlink = a.Kind, &a.Mode, &a.UID, &a.GID, &a.Size, &a.Nlink
	}
	if e.Op == event.Write && e.Length > 0 {
		r.Offset, r.Length = &e.Offset, &e.Length
	}
	if e.Op == event.Symlink {
		r.Target = (*kernel.Text)(&e.Target)
	}
	if e.Op == event.Mknod && e.Device != 0 {
		r.Device = fmt.Sprintf("%d:%d", e.Device>>32, uint32(e.Device))
	}
	if c := e.Content; c != nil {
		r.SHA256, r.Torn = hex.EncodeToString(c.SHA256[:]), c.Torn
	}
	return r
}

// eventLine is an event for people: the paper's form.
func eventLine(e *event.Event) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: ", e.Op)
	switch {
	case e.Op == event.Lost:
		if volume, _, _ := strings.Cut(e.FS, " "); volume != "" {
			fmt.Fprintf(&b, "%s: ", kernel.Text(volume))
		}
		b.WriteString(kernel.Text(e.Detail).String())
		return b.String()
	case e.Op == event.Rename:
		fmt.Fprintf(&b, "%s -> %s", told(e.OldPath), told(e.Path))
	case e.Op == event.Symlink:
		fmt.Fprintf(&b, "%s -> %s", told(e.Path), told(e.Target))
	case e.Op == event.Write && e.Length > 0:
		fmt.Fprintf(&b, "%s (%d bytes at %d)", told(e.Path), e.Length, e.Offset)
	case e.Op == event.Chmod && e.Attr != nil:
		fmt.Fprintf(&b, "%s (%04o)", told(e.Path), e.Attr.Mode)
	case e.Op == event.Chown && e.Attr != nil:
		fmt.Fprintf(&b, "%s (%d:%d)", told(e.Path), e.Attr.UID, e.Attr.GID)
	case e.Op == event.Truncate && e.Attr != nil:
		fmt.Fprintf(&b, "%s (%d bytes)", told(e.Path), e.Attr.Size)
	default:
		b.WriteString(told(e.Path))
	}
	return b.String()
}

// told is a name as it stands in an event's line: in quotes if it could be taken for more than the name, as that of a file called
// "a -> b" could.
func told(s string) string {
	text := kernel.Text(s).String()
	if strings.HasPrefix(text, `"`) || text != strings.TrimSpace(text) || strings.Contains(text, " ") && strings.ContainsAny(text, `>(:`) {
		return `"` + strings.ReplaceAll(text, `"`, `\"`) + `"`
	}
	return text
}

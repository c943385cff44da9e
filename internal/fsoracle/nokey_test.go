package fsoracle

import (
	"encoding/base64"
	"reflect"
	"strings"
	"testing"

	"vmscope/internal/guestlab/wire"
)

func TestWithoutDirHash(t *testing.T) {
	name := func(hash, cipher string) string { return base64.RawURLEncoding.EncodeToString([]byte(hash + cipher)) }
	long := name("hashhash", strings.Repeat("c", 149)+strings.Repeat("s", 32))
	at := func(path, kind string, encrypted bool) wire.File {
		return wire.File{Path: []byte(path), Kind: kind, Encrypted: encrypted}
	}
	link := at("/d/"+name("hashhash", "link"), "symlink", true)
	link.Target, link.Size = []byte(name("\x00\x00\x00\x00\x00\x00\x00\x00", "target.")), 99
	wantLink := at("/d/"+name("", "link"), "symlink", true)
	wantLink.Target, wantLink.Size = []byte(name("", "target.")), 9
	tree := []wire.File{
		at("/", "dir", false), at("/d", "dir", true), at("/d/"+name("hashhash", "sub"), "dir", true),
		at("/d/"+name("hashhash", "sub")+"/"+name("hashhash", "file"), "file", true), link,
		at("/d/"+long, "file", true), at("/d/short", "fifo", false), at("/"+name("hashhash", "plain"), "file", false),
	}
	want := []wire.File{
		at("/", "dir", false), at("/d", "dir", true), at("/d/"+name("", "sub"), "dir", true),
		at("/d/"+name("", "sub")+"/"+name("", "file"), "file", true), wantLink,
		at("/d/"+long, "file", true), at("/d/short", "fifo", false), at("/"+name("hashhash", "plain"), "file", false),
	}
	if got := WithoutDirHash(tree); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if got := WithoutDirHash(small()); !reflect.DeepEqual(got, small()) {
		t.Errorf("a tree without encryption has changed: %+v", got)
	}
}

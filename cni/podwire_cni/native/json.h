/* JSON for client.c: the few top-level keys of a network configuration that matter before the agent
 * is reached, and strings to write. No parser: text that is no JSON is the agent's to complain
 * about. */
#ifndef PODWIRE_JSON_H
#define PODWIRE_JSON_H
#include <stdio.h>
#include <string.h>

static const char *skip_string(const char *p)
{
	for (p++; *p && *p != '"'; p++)
		if (*p == '\\' && p[1])
			p++;
	return *p ? p + 1 : p;
}

/* Where the value of top-level key `name` starts, or NULL. Text that is no JSON is the agent's to
 * complain about. */
static const char *find_key(const char *p, const char *name)
{
	size_t len = strlen(name);
	int depth = 0, is_key = 0;
	while (*p) {
		if (*p == '{' || *p == '[') {
			depth++;
			is_key = depth == 1 && *p == '{';
			p++;
		} else if (*p == '}' || *p == ']') {
			depth--;
			p++;
		} else if (*p == ',') {
			is_key = depth == 1;
			p++;
		} else if (*p == '"') {
			const char *start = p + 1, *end = skip_string(p);
			int hit = is_key && (size_t)(end - start) == len + 1 &&
				  strncmp(start, name, len) == 0;
			is_key = 0;
			p = end;
			if (hit) {
				p += strspn(p, " \t\r\n");
				if (*p == ':')
					return p + 1 + strspn(p + 1, " \t\r\n");
			}
		} else {
			p++;
		}
	}
	return NULL;
}

/* The plain string under `name` in out[size]; 0 where it is absent, too long, or has escapes other
 * than \/ \" \\ */
static int string_key(const char *json, const char *name, char *out, size_t size)
{
	const char *p = find_key(json, name);
	size_t n = 0;
	if (!p || *p != '"')
		return 0;
	for (p++; *p && *p != '"'; p++) {
		if (*p == '\\' && !strchr("/\"\\", *++p))
			return 0;
		if (!*p || n + 1 >= size)
			return 0;
		out[n++] = *p;
	}
	out[n] = 0;
	return *p == '"' && n > 0;
}

static int true_key(const char *json, const char *name)
{
	const char *p = find_key(json, name);
	return p && strncmp(p, "true", 4) == 0;
}

/* How long the JSON value at `p` is: an object or array to its closing bracket. */
static size_t extent(const char *p)
{
	const char *start = p;
	int depth = 0;
	while (*p) {
		if (*p == '"') {
			p = skip_string(p);
			continue;
		}
		depth += (*p == '{' || *p == '[') - (*p == '}' || *p == ']');
		p++;
		if (depth == 0)
			break;
	}
	return (size_t)(p - start);
}

/* How many bytes the UTF-8 character at `s` has, or 0 where there is none (RFC 3629: nothing
 * overlong, no surrogates). */
static int utf8_length(const unsigned char *s)
{
	int more = *s < 0x80		     ? 0
		   : *s >= 0xc2 && *s < 0xe0 ? 1
		   : (*s & 0xf0) == 0xe0     ? 2
		   : *s >= 0xf0 && *s < 0xf5 ? 3
					     : -1;
	for (int i = 1; i <= more; i++)
		if ((s[i] & 0xc0) != 0x80)
			return 0;
	if ((*s == 0xe0 && s[1] < 0xa0) || (*s == 0xed && s[1] > 0x9f) ||
	    (*s == 0xf0 && s[1] < 0x90) || (*s == 0xf4 && s[1] > 0x8f))
		return 0;
	return more + 1;
}

/* Paths, variables and stdin may hold any bytes; JSON is UTF-8. */
static void print_json_string(const char *s)
{
	putchar('"');
	for (int n; *s; s += n ? n : 1) {
		unsigned char c = (unsigned char)*s;
		n = utf8_length((const unsigned char *)s);
		if (!n)
			fputs("\\ufffd", stdout);
		else if (c == '"' || c == '\\')
			printf("\\%c", c);
		else if (c < 0x20)
			printf("\\u%04x", c);
		else
			fwrite(s, 1, (size_t)n, stdout);
	}
	putchar('"');
}

#endif

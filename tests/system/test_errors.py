"""Bad input: EC2's own code for each, and nothing changed."""

import datetime
import unittest
import urllib.error
import urllib.parse
import urllib.request
from unittest import mock

import botocore.auth
import botocore.awsrequest
import botocore.credentials

from installation import REGIONS, Installation, error_code

up = None


def setUpModule():
    global up
    up = Installation()


def tearDownModule():
    up.close()


NO_INSTANCE = "i-0123456789abcdef0"
NO_GROUP = "sg-0123456789abcdef0"
NO_IMAGE = "ami-0123456789abcdef0"


def calls(ec2, image, group):
    """(what, EC2's code, call)"""
    def run(**more):
        ec2.run_instances(**{"ImageId": image, "InstanceType": "t3.nano",
                             "MinCount": 1, "MaxCount": 1, **more})
    def authorize(**rule):
        ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[
            {"IpProtocol": "tcp", "FromPort": 1, "ToPort": 1, **rule}])
    def cidr(text):
        return {"IpRanges": [{"CidrIp": text}]}
    return [
        ("malformed instance id", "InvalidInstanceID.Malformed",
         lambda: ec2.describe_instances(InstanceIds=["i-xyz"])),
        ("unknown instance", "InvalidInstanceID.NotFound",
         lambda: ec2.describe_instances(InstanceIds=[NO_INSTANCE])),
        ("stop of an unknown instance", "InvalidInstanceID.NotFound",
         lambda: ec2.stop_instances(InstanceIds=[NO_INSTANCE])),
        ("console of an unknown instance", "InvalidInstanceID.NotFound",
         lambda: ec2.get_console_output(InstanceId=NO_INSTANCE)),
        ("malformed image", "InvalidAMIID.Malformed", lambda: run(ImageId="ami-xyz")),
        ("unknown image", "InvalidAMIID.NotFound", lambda: run(ImageId=NO_IMAGE)),
        ("unknown type", "InvalidParameterValue", lambda: run(InstanceType="t3.gigantic")),
        ("no instances", "InvalidParameterValue", lambda: run(MinCount=0, MaxCount=0)),
        ("more at least than at most", "InvalidParameterValue", lambda: run(MinCount=2, MaxCount=1)),
        ("user data over 16 KiB", "InvalidParameterValue", lambda: run(UserData="x" * 16385)),
        ("unknown group at run", "InvalidGroup.NotFound", lambda: run(SecurityGroupIds=[NO_GROUP])),
        ("unknown subnet", "InvalidSubnetID.NotFound",
         lambda: run(SubnetId="subnet-0123456789abcdef0")),
        ("unknown group", "InvalidGroup.NotFound",
         lambda: ec2.describe_security_groups(GroupIds=[NO_GROUP])),
        ("malformed group", "InvalidGroupId.Malformed",
         lambda: ec2.describe_security_groups(GroupIds=["sg-xyz"])),
        ("group name taken", "InvalidGroup.Duplicate", lambda: up.group("bad-input")),
        ("bad CIDR", "InvalidParameterValue", lambda: authorize(**cidr("10.0.0.0/33"))),
        ("CIDR that is none", "InvalidParameterValue", lambda: authorize(**cidr("everywhere"))),
        ("ports the wrong way round", "InvalidParameterValue",
         lambda: authorize(FromPort=9, ToPort=8, **cidr("10.0.0.0/8"))),
        ("a rule that is there", "InvalidPermission.Duplicate",
         lambda: authorize(FromPort=22, ToPort=22, **cidr("10.0.0.0/8"))),
        ("revoke of a rule that is not there", "InvalidPermission.NotFound",
         lambda: ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=[
             {"IpProtocol": "tcp", "FromPort": 9, "ToPort": 9, **cidr("10.0.0.0/8")}])),
        ("unknown filter", "InvalidParameterValue",
         lambda: ec2.describe_instances(Filters=[{"Name": "no-such-filter", "Values": ["x"]}])),
        ("page size under 5", "InvalidParameterValue",
         lambda: ec2.describe_instances(MaxResults=4)),
        ("unknown volume", "InvalidVolume.NotFound",
         lambda: ec2.describe_volumes(VolumeIds=["vol-0123456789abcdef0"])),
        ("tag on an unknown resource", "InvalidInstanceID.NotFound",
         lambda: ec2.create_tags(Resources=[NO_INSTANCE], Tags=[{"Key": "a", "Value": "b"}])),
        ("reserved tag key", "InvalidParameterValue",
         lambda: ec2.create_tags(Resources=[group], Tags=[{"Key": "aws:x", "Value": "b"}])),
    ]


class BadInput(unittest.TestCase):
    def test_each_ends_in_its_code_and_changes_nothing(self):
        group = up.group("bad-input")
        up.ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[
            {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "10.0.0.0/8"}]}])
        before = self.everything()
        for what, code, call in calls(up.ec2, up.image(), group):
            with self.subTest(what):
                self.assertEqual(error_code(call), code)
        self.assertEqual(self.everything(), before)

    def everything(self):
        return (up.ec2.describe_instances()["Reservations"],
                up.ec2.describe_volumes()["Volumes"],
                up.ec2.describe_network_interfaces()["NetworkInterfaces"],
                up.ec2.describe_security_groups()["SecurityGroups"])


class Signatures(unittest.TestCase):
    def test_an_unknown_key_is_refused(self):
        stranger = up.client("ec2", aws_access_key_id="AKIAAAAAAAAAAAAAAAAA")
        self.assertEqual(error_code(stranger.describe_regions), "AuthFailure")

    def test_a_wrong_secret_is_refused(self):
        liar = up.client("ec2", aws_secret_access_key="not the secret")
        self.assertIn(error_code(liar.describe_regions), ("AuthFailure", "SignatureDoesNotMatch"))

    def test_old_and_future_dates_are_refused(self):
        for minutes in (-6, 6, -600):
            with self.subTest(minutes):
                self.assertIn(self.send(minutes=minutes)[0], (400, 401, 403))
        self.assertEqual(self.send(minutes=-4)[0], 200)

    def test_what_was_signed_is_what_is_read(self):
        self.assertEqual(self.send()[0], 200)
        status, body = self.send(tamper=lambda body: body.replace(b"Regions", b"Images"))
        self.assertIn(status, (400, 401, 403))
        self.assertNotIn(b"ami-", body)

    def test_an_unknown_action_has_its_code(self):
        status, body = self.send(action="MakeCoffee")
        self.assertEqual(status, 400)
        self.assertIn(b"<Code>InvalidAction</Code>", body)

    def test_no_signature_no_answer(self):
        request = urllib.request.Request(up.env["OCS_ENDPOINT"],
                                         data=b"Action=DescribeRegions&Version=2016-11-15")
        self.assertIn(self.open(request)[0], (400, 401, 403))

    def send(self, action="DescribeRegions", minutes=0, tamper=lambda body: body):
        """One signed request; yields status and body."""
        body = urllib.parse.urlencode({"Action": action, "Version": "2016-11-15"}).encode()
        request = botocore.awsrequest.AWSRequest(
            "POST", up.env["OCS_ENDPOINT"] + "/", data=body,
            headers={"Content-Type": "application/x-www-form-urlencoded"})
        keys = botocore.credentials.Credentials(
            up.env["AWS_ACCESS_KEY_ID"], up.env["AWS_SECRET_ACCESS_KEY"])
        now = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(minutes=minutes)
        with mock.patch("botocore.auth.get_current_datetime", return_value=now):
            botocore.auth.SigV4Auth(keys, "ec2", REGIONS[0]).add_auth(request)
        return self.open(urllib.request.Request(
            request.url, data=tamper(body), headers=dict(request.headers.items())))

    def open(self, request):
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
